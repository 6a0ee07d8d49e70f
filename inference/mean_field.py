"""Mean-field Gaussian posterior over LoRA-A, after BLoB."""

import math
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import register_kl

from bayes_lora.adapters import AdapterGroup
from bayes_lora.checks import require_positive
from bayes_lora.column_normal import ColumnNormal
from bayes_lora.inference.adapter_guide import AdapterGuide
from bayes_lora.models import BayesianLoRA
from bayes_lora.precision import full_precision, half_log_determinant


class MeanFieldGuide(AdapterGuide):
    """q(A) = prod_ij N(A_ij; mu_ij, sigma_ij^2), one standard deviation for each entry of LoRA-A.

        A = mu + sigma * z,   sigma = eps_l s,   z ~ N(0, 1)
        loss = NLL + temperature / n_train * sum_ij [ (sigma_ij^2 + mu_ij^2) / (2 p^2) - 1/2 - ln(sigma_ij / p) ]

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

    def columns(self) -> dict[str, TorchDistribution]:
        """N(mu, diag sigma^2) of each group's columns."""
        sites = self.model.sites
        return {
            sites.column_site(group): DiagonalNormal(sites.means(group), self.deviation(group), validate_args=False)
            for group in sites.groups
        }


class DiagonalNormal(TorchDistribution):  # type: ignore[misc]
    """Columns x_i ~ N(loc_i, diag scale_i^2), with a closed-form KL to a `ColumnNormal`.

    Args:
        loc: (adapter, column, rank).
        scale: (adapter, column, rank), positive.

    The batch shape is (adapter, column), the event shape (rank,), as those of a `ColumnNormal`.
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """(adapter, column, rank)."""
        return self.loc  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        """(adapter, column, rank)."""
        return self.scale.square()  # type: ignore[no-any-return]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormal":
        """The same distribution with batch dimensions broadcast to `batch_shape`."""
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:
            return self
        wide = shape + self.event_shape
        return DiagonalNormal(self.loc.expand(wide), self.scale.expand(wide), validate_args=False)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws (*sample_shape, adapter, column, rank)."""
        shape = torch.Size(sample_shape) + self.loc.shape
        return torch.addcmul(self.loc, self.scale, torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of values (..., column, rank); returns (..., column)."""
        whitened = (value - self.loc) / self.scale
        return -(whitened.square() / 2 + self.scale.log() + math.log(2 * math.pi) / 2).sum(-1)  # type: ignore[no-any-return]


@register_kl(DiagonalNormal, ColumnNormal)  # type: ignore[untyped-decorator]
@full_precision
def _kl_diagonal_normal_column_normal(q: DiagonalNormal, p: ColumnNormal) -> Tensor:
    """KL per column: 1/2 (tr(P^-1 diag sigma^2) + d' P^-1 d - r + ln|P|) - sum ln sigma, d = loc_q - loc_p.

    Returns (adapter, column). The prior's factor is inverted once for all columns of an adapter.
    """
    identity = torch.eye(p.event_shape[0], dtype=p.scale_tril.dtype, device=p.scale_tril.device)
    inverse = torch.linalg.solve_triangular(p.scale_tril, identity.expand_as(p.scale_tril), upper=False)
    precision = inverse.square().sum(-2).unsqueeze(-2)  # diagonal of P^-1, (adapter, 1, rank)
    shift = q.loc if p.loc is None else q.loc - p.loc
    distance = (shift @ inverse.mT).square().sum(-1)
    spread = (q.variance * precision - 2 * q.scale.log() - 1).sum(-1)
    return (spread + distance) / 2 + half_log_determinant(p.scale_tril).unsqueeze(-1)  # type: ignore[no-any-return]
