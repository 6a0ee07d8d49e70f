"""MonteCLoRA's posterior over LoRA-A: a Dirichlet mixture of Gaussians with a Wishart covariance."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor

from bayes_lora.adapters import AdapterGroup
from bayes_lora.choices import GAUSSIAN_DESIGNS, Draws
from bayes_lora.distributions.column_normal import ColumnNormal
from bayes_lora.distributions.expected_normal import ExpectedColumnNormal
from bayes_lora.effect_handlers import densities_only
from bayes_lora.inference.guides.lora_guide import LoRAGuide
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents

_MIN_RANDOM_CONCENTRATION = 1e-3


class MonteCLoRAGuide(LoRAGuide):
    """q(pi) q(Sigma) q(S | Sigma): Dirichlet(alpha), Wishart(nu, diag v), N(0, Sigma), for all adapters.

    Objective "elbo": ``q(A | pi, Sigma) = N(mu, s^2 Sigma)`` per column with ``s^2 = eps^2 sum_k pi_k^2`` instead of S.

    alpha and v are positive parameters kept as logarithms, N + rank numbers per adapter:

        concentration     (adapter, component)     alpha, starts at config.init_concentration
        scale_r{rank}     (adapter, rank)          v of the adapters of this rank, starts at the prior's c

    Args:
        model: the model whose adapters this is the posterior of.

    Raises:
        UnsupportedELBOError: called by an ELBO under which the result would be another objective or an error.

    Source: arXiv 2411.04358, Algorithm 1.

    Example:
        >>> guide = MonteCLoRAGuide(model)  # doctest: +SKIP
        >>> svi = pyro.infer.SVI(model, guide, optimizer, pyro.infer.TraceMeanField_ELBO())  # doctest: +SKIP
    """

    kind: ClassVar[str] = "monteclora"
    family = "MonteCLoRA, [arXiv 2411.04358](https://arxiv.org/abs/2411.04358)"

    def __init__(self, model: BayesianLoRA) -> None:
        super().__init__(model)
        with pyro.settings.context(module_local_params=True):
            sites, config = model.sites, model.config
            shape = (len(sites.adapters), config.num_components)
            if config.init_concentration == "random":
                concentration = torch.rand(shape).clamp_min(_MIN_RANDOM_CONCENTRATION).to(sites.example)
            else:
                concentration = sites.example.new_full(shape, config.init_concentration)
            self.concentration = PyroParam(concentration, constraints.positive, event_dim=1)
            for rank in sites.ranks:
                scale = sites.prior_wishart(rank).scale_diagonal.clone()
                setattr(self, f"scale_r{rank}", PyroParam(scale, constraints.positive, event_dim=1))

    def __call__(self, *args: Any, **kwargs: Any) -> Latents:
        if densities_only():
            return torch.nn.Module.__call__(self, *args, **kwargs)  # type: ignore[no-any-return]
        return super().__call__(*args, **kwargs)

    @property
    def designs(self) -> tuple[Draws, ...]:
        """A Gaussian about mu, whatever pi and Sigma are."""
        return GAUSSIAN_DESIGNS

    @classmethod
    def expected_shapes(cls, model: BayesianLoRA, settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """As the table above has them; there are no settings."""
        sites = model.sites
        scales = {
            f"scale_r{rank}_unconstrained": sites.prior_wishart(rank).scale_diagonal.shape for rank in sites.ranks
        }
        return {"concentration_unconstrained": (len(sites.adapters), model.config.num_components), **scales}

    def sample(self) -> Latents:
        """q(pi), q(Sigma), then the columns given both."""
        sites = self.model.sites
        scales = {rank: self.scale(rank) for rank in sites.ranks}
        covariances = {rank: sites.covariances(rank, scale) for rank, scale in scales.items()}
        return sites.sample(sites.weights(self.concentration), covariances, partial(self._columns, scales))

    def scale(self, rank: int) -> Tensor:
        """v of the adapters of this rank, (adapter, rank)."""
        return getattr(self, f"scale_r{rank}")  # type: ignore[no-any-return]

    def _columns(
        self, scales: Mapping[int, Tensor], group: AdapterGroup, pi: Tensor, factors: Callable[[], Tensor]
    ) -> ColumnNormal:
        sites, config = self.model.sites, self.model.config
        factor, spread, loc = factors(), None, None
        if config.objective == "elbo":
            of_weights = pi.square().sum(-1).sqrt() if config.mixture == "dense" else torch.ones_like(pi[..., 0])
            spread, loc = self.model.group_scale(group) * of_weights, sites.means(group)
            factor = spread[..., None, None] * factor
        if config.normal_kl == "sampled":
            return ColumnNormal(factor, group.in_features, loc, validate_args=False)
        wishart = sites.group_wishart(group, scales[group.rank])
        return ExpectedColumnNormal(factor, group.in_features, wishart, spread, loc, validate_args=False)
