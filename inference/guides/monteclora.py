"""The guide: the learned posterior over LoRA-A."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from bayes_lora.adapters import AdapterGroup
from bayes_lora.distributions.column_normal import ColumnNormal
from bayes_lora.distributions.expected_normal import ExpectedColumnNormal
from bayes_lora.effect_handlers import densities_only
from bayes_lora.errors import UnsupportedELBOError
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents
from bayes_lora.precision import posterior_dtype

_MIN_RANDOM_CONCENTRATION = 1e-3


class MonteCLoRAGuide(PyroModule):  # type: ignore[misc]
    """q(pi) q(Sigma) q(S | Sigma): Dirichlet(alpha), Wishart(nu, diag v), N(0, Sigma), for all adapters.

    Objective "elbo": ``q(A | pi, Sigma) = N(mu, s^2 Sigma)`` per column with ``s^2 = eps^2 sum_k pi_k^2`` instead of S.

    alpha and v are positive parameters kept as logarithms, N + rank numbers per adapter:

        concentration     (adapter, component)     alpha, starts at config.init_concentration
        scale_r{rank}     (adapter, rank)          v of the adapters of this rank, starts at the prior's c

    They live in this module, never in Pyro's global store. The model is not registered as a submodule.

    Args:
        model: the model whose adapters this is the posterior of.

    Raises:
        UnsupportedELBOError: called by an ELBO under which the result would be another objective or an error.

    Source: arXiv 2411.04358, Algorithm 1.

    Example:
        >>> guide = MonteCLoRAGuide(model)  # doctest: +SKIP
        >>> svi = pyro.infer.SVI(model, guide, optimizer, pyro.infer.TraceMeanField_ELBO())  # doctest: +SKIP
    """

    def __init__(self, model: BayesianLoRA) -> None:
        with pyro.settings.context(module_local_params=True):
            super().__init__()
            # In a tuple, so that the module system does not see it.
            self._model_reference = (model,)
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
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MonteCLoRAGuide":
        # Cast to half precision, the posterior stays in float32 or better; the network may be cast alone.
        def cast(value: Tensor) -> Tensor:
            new = fn(value)
            halved = value.is_floating_point() and posterior_dtype(new.dtype) != new.dtype
            return value.to(new.device) if halved else new

        super()._apply(cast, recurse)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Latents:
        """Sample the posterior; the batch is accepted, as Pyro passes it, and not looked at."""
        refuse_unsupported_elbo()
        sites = self.model.sites
        scales = {rank: self.scale(rank) for rank in sites.ranks}
        covariances = {rank: sites.covariances(rank, scale) for rank, scale in scales.items()}
        return sites.sample(sites.weights(self.concentration), covariances, partial(self._columns, scales))

    @property
    def model(self) -> BayesianLoRA:
        """The model this guide belongs to."""
        return self._model_reference[0]

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


def refuse_unsupported_elbo() -> None:
    """Raise if the ELBO that is calling is not one under which the objective is what it says.

    Pyro tells a guide nothing about its caller, so this looks up the call stack for the ELBO's entry point.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("differentiable_loss", "loss_and_grads", "loss", "loss_and_surrogate_loss"):
            elbo = frame.f_locals.get("self")
            if isinstance(elbo, ELBO):
                _check_elbo(elbo)
                return
        frame = frame.f_back  # type: ignore[assignment]


def _check_elbo(elbo: ELBO) -> None:
    name = type(elbo).__name__
    # Trace_ELBO has subclasses that enumerate, weigh or compile: those compute something else.
    if type(elbo).__module__.startswith("pyro.") and type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO):
        raise UnsupportedELBOError(
            f"{name} is not supported: it would not compute this model's objective. "
            "Use TraceMeanField_ELBO() (analytic KLs), or Trace_ELBO()."
        )
    if elbo.vectorize_particles and elbo.num_particles > 1:
        raise UnsupportedELBOError(
            f"{name}(vectorize_particles=True) is not supported: the network runs once per particle. "
            f"Use {name}(num_particles={elbo.num_particles})."
        )
