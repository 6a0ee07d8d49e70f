"""Mean-field Gaussian posterior over LoRA-A, after BLoB."""

from collections.abc import Mapping
from typing import Any

import pyro
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroParam
from torch import Tensor

from bayes_lora.adapters import AdapterGroup
from bayes_lora.checks import require_positive
from bayes_lora.choices import GAUSSIAN_DESIGNS, Draws
from bayes_lora.distributions.diagonal_normal import DiagonalNormal
from bayes_lora.inference.guides.adapter_guide import AdapterGuide
from bayes_lora.models import BayesianLoRA


class MeanFieldGuide(AdapterGuide):
    """q(A) = prod_ij N(A_ij; mu_ij, sigma_ij^2), one standard deviation for each entry of LoRA-A.

        A = mu + sigma * z,   sigma = eps_l s,   z ~ N(0, 1)
        loss = NLL + T / n_train * sum_ij [ (sigma_ij^2 + mu_ij^2) / (2 p^2) - 1/2 - ln(sigma_ij / p) ]

    mu is the LoRA-A parameter itself, so the mean adapter is the PEFT adapter; p is `config.prior_scale`; eps_l is the
    adapter's `sample_scale`, so that scale schedules and calibration act here as on a `MonteCLoRAGuide`. s is learned,
    kept as its logarithm, as many numbers as LoRA-A has:

        scale_r{rank}_n{in_features}     (adapter, column, rank)     starts at init_scale / config.sample_scale

    As sigma goes to 0 the predictions become those of plain LoRA; a sigma below the rounding of mu adds nothing to it.

    As in BLoB: only A is random, B and the head are point parameters; the posterior factorizes over entries; mean and
    deviation are learned together, from one draw a step, with the KL in closed form. BLoB's low-rank Gaussian prior
    on the full weight gives, by its Theorem 3.2, the KL of A from N(0, sigma_p^2): the same as here with
    ``prior_scale = sigma_p`` (0.2 in its code). Otherwise than in BLoB:

    - sigma = rho^2 there (section 3.3), with rho from U(e / sqrt 2, e), e = 0.05 in its code, so sigma from 1.25e-3 to
      2.5e-3. Here sigma = exp(.), which steps by ratios: under Adam it moves from 1e-3 to 1e-1 as evenly as back. All
      start alike; ``init_scale=2e-3`` is where BLoB starts.
    - One draw serves a whole batch. Flipout (section 3.4) turns its signs by token there, which lowers the variance
      of the gradient, but is no longer one A for a sequence, nor the posterior that predictions draw from.
    - The KL is part of the loss, with the weight of the ELBO. There a second optimizer takes it, with a learning rate
      of its own and weights that rise within each epoch.

    Args:
        model: a model of objective "elbo".
        init_scale: sigma at the start, at the configured sample_scale; None is that sample_scale.

    Raises:
        ConfigurationError: objective "paper", or an init_scale not above 0, where the KL is infinite.
        UnsupportedELBOError: called by an ELBO under which the result would be another objective or an error.

    Source: Wang et al. (2024), arXiv 2406.11675, section 3 and its published code.

    Example:
        >>> guide = MeanFieldGuide(model, init_scale=2e-3)  # doctest: +SKIP
        >>> fit(model, guide, dataset)  # doctest: +SKIP
    """

    kind = "mean_field"
    family = "a Gaussian for each entry, after BLoB, [arXiv 2406.11675](https://arxiv.org/abs/2406.11675)"

    def __init__(self, model: BayesianLoRA, *, init_scale: float | None = None) -> None:
        super().__init__(model)
        if init_scale is None:
            init_scale = model.config.sample_scale
        require_positive("init_scale", init_scale, hint="the KL is infinite at 0")
        with pyro.settings.context(module_local_params=True):
            for group in model.sites.groups:
                start = init_scale / model.config.sample_scale
                scale = model.sites.example.new_full((len(group), group.in_features, group.rank), start)
                setattr(self, "scale" + group.suffix, PyroParam(scale, constraints.positive, event_dim=1))

    def deviation(self, group: AdapterGroup) -> Tensor:
        """sigma of the group's LoRA-A entries, (adapter, column, rank)."""
        return self.model.group_scale(group)[:, None, None] * getattr(self, "scale" + group.suffix)  # type: ignore[no-any-return]

    @property
    def designs(self) -> tuple[Draws, ...]:
        """A Gaussian about mu."""
        return GAUSSIAN_DESIGNS

    @classmethod
    def expected_shapes(cls, model: BayesianLoRA, settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """As the table above has them; where sigma started is no setting of what was learned."""
        return {
            f"scale{group.suffix}_unconstrained": (len(group), group.in_features, group.rank)
            for group in model.sites.groups
        }

    def columns(self) -> dict[str, TorchDistribution]:
        """N(mu, diag sigma^2) of each group's columns."""
        sites = self.model.sites
        return {
            sites.column_site(group): DiagonalNormal(sites.means(group), self.deviation(group), validate_args=False)
            for group in sites.groups
        }
