"""The sample sites of the posterior over LoRA-A: names, shapes, plates and scales, the same for model and guide.

Both sides open the same sites in the same order under the same scales, from here, because Pyro does not notice
when they differ: `TraceMeanField_ELBO` scales an analytic KL by the guide's scale alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import groupby

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayes_lora.adapters import AdapterGroup, find_adapters, group_by_shape, perturb_linears
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.distributions.column_normal import ColumnNormal
from bayes_lora.distributions.wishart import Wishart, cholesky_factor
from bayes_lora.effect_handlers import SiteHandler
from bayes_lora.errors import ConfigurationError, UnsupportedELBOError
from bayes_lora.precision import posterior_dtype

# The term of the loss that a site belongs to, by the first part of its name.
KL_TERMS = {"pi": "kl_dirichlet", "Sigma": "kl_wishart", "S": "kl_normal", "A": "kl_normal"}

# Given a group, its mixture weights pi (..., adapter, component) and a function that gives its covariance factors
# (..., adapter, [component,] rank, rank): the distribution of the group's column site.
ColumnDistribution = Callable[[AdapterGroup, Tensor, Callable[[], Tensor]], ColumnNormal]


@dataclass(frozen=True)
class Latents:
    """One draw of the mixture weights, pi ([outer,] adapter, component), and of each group's columns."""

    weights: Tensor
    columns: tuple[Tensor, ...]

    @cached_property
    def squared_weights(self) -> Tensor:
        """sum_k pi_k^2, ([outer,] adapter)."""
        return self.weights.square().sum(-1)


class LatentSites:
    """Sites `pi`, `Sigma_r{rank}` and `S_r{rank}_n{in_features}` (objective "elbo": `A_...`) of all adapters at once.

    The number of sites depends on how many different shapes LoRA-A has, not on how many adapters there are.
    """

    def __init__(self, network: nn.Module, config: MonteCLoRAConfig) -> None:
        self.config = config
        self.adapters = find_adapters(network)
        self.degrees_of_freedom = tuple(
            config.resolve_degrees_of_freedom(adapter.rank, adapter.in_features) for adapter in self.adapters
        )
        self.groups = group_by_shape(self.adapters)
        self.ranks = {
            rank: slice(min(group.start for group in groups), max(group.stop for group in groups))
            for rank, groups in ((rank, list(found)) for rank, found in groupby(self.groups, key=lambda g: g.rank))
        }
        self.noise_state = perturb_linears(network, self.adapters)
        self._prior_wisharts: dict[tuple[int, torch.device, torch.dtype], Wishart] = {}
        self._handlers = self._make_handlers()

    @property
    def names(self) -> tuple[str, ...]:
        """Module names of the adapters: the coordinates of the `adapter` plate."""
        return tuple(adapter.name for adapter in self.adapters)

    @property
    def example(self) -> Tensor:
        """An empty tensor with the device and dtype of posterior parameters and noise."""
        weight = self.adapters[0].linear.weight
        return torch.empty(0, device=weight.device, dtype=posterior_dtype(weight.dtype))

    @property
    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the network's adapters."""
        weight = self.adapters[0].linear.weight
        return weight.device, weight.dtype

    @property
    def outer_shape(self) -> tuple[int, ...]:
        """(M,) where M > 1, else ()."""
        return () if self.config.num_outer_samples == 1 else (self.config.num_outer_samples,)

    @property
    def component_shape(self) -> tuple[int, ...]:
        """(N,) where the components are drawn one by one, else ()."""
        return (self.config.num_components,) if self.config.sampler == "explicit" else ()

    def prior_wishart(self, rank: int) -> Wishart:
        """Wishart(nu, c I) of the adapters of this rank, made once for each device and dtype."""
        key = (rank, *self.placement)
        if key not in self._prior_wisharts:
            like = self.example
            # Outside inference mode, whose tensors no later training step could use.
            with torch.inference_mode(False):
                df = self.degrees_of_freedom[self.ranks[rank]]
                scale = like.new_tensor([self.config.wishart_scale(nu) for nu in df]).unsqueeze(-1).expand(-1, rank)
                self._prior_wisharts[key] = Wishart(like.new_tensor(df), scale, validate_args=False)
        return self._prior_wisharts[key]

    def column_site(self, group: AdapterGroup) -> str:
        """Name of the group's site: S, the noise, or A itself."""
        return ("S" if self.config.objective == "paper" else "A") + group.suffix

    def covariance_site(self, rank: int) -> str:
        """Name of the site of the covariances of this rank."""
        return f"Sigma_r{rank}"

    @property
    def shaping_sites(self) -> tuple[str, ...]:
        """Names of the sites that shape the noise, which the columns are; by rank, so from first adapter to last."""
        return ("pi", *map(self.covariance_site, self.ranks))

    def means(self, group: AdapterGroup) -> Tensor:
        """mu of the group's adapters, by column: (adapter, column, rank)."""
        like = self.example
        return torch.stack([adapter.mean.to(like) for adapter in self.adapters[group.start : group.stop]]).mT

    def weights(self, concentration: Tensor) -> dist.Dirichlet:
        """Dirichlet of pi, given its concentration (adapter, component)."""
        shape = (*self.outer_shape, *concentration.shape)
        return dist.Dirichlet(concentration.expand(shape) if self.outer_shape else concentration, validate_args=False)

    def covariances(self, rank: int, scale: Tensor) -> Wishart:
        """Wishart of the covariances of this rank's adapters, given v (adapter, rank)."""
        fn = self.prior_wishart(rank).with_scale(scale)
        return fn.expand((*self.outer_shape, *fn.batch_shape))

    def sample(
        self, weights: dist.Dirichlet, covariances: Mapping[int, Wishart], columns: ColumnDistribution
    ) -> Latents:
        """Open every site, in the order pi, Sigma, columns.

        Args:
            weights: the distribution of pi; see `weights`.
            covariances: for each rank, the distribution of its covariances; see `covariances`.
            columns: the distribution of a group's columns given its pi and covariance factors.
        """
        with self._handlers[""]:
            pi = pyro.sample("pi", weights)
        pi = _as_shape("pi", pi, weights.batch_shape + weights.event_shape)
        factors: dict[int, Callable[[], Tensor]] = {}
        values = []
        for group in self.groups:
            if group.rank not in factors:
                factors[group.rank] = self._sample_covariances(group.rank, covariances[group.rank])
            fn = columns(
                group, pi[..., group.start : group.stop, :], partial(self._group_factors, group, factors[group.rank])
            )
            with self._handlers[group.suffix]:
                value = pyro.sample(self.column_site(group), fn)
            values.append(_as_shape(self.column_site(group), value, fn.batch_shape + fn.event_shape))
        return Latents(pi, tuple(values))

    def set_num_train_examples(self, number: int) -> None:
        """Weigh the KL by 1 / number from now on."""
        self.config = replace(self.config, num_train_examples=number)
        self._handlers = self._make_handlers()

    def require_weight(self) -> None:
        """Raise where a loss would have a KL of unknown weight.

        Raises:
            ConfigurationError: objective "elbo" without a number of training rows.
        """
        if self.config.objective == "elbo" and self.config.num_train_examples is None:
            raise ConfigurationError(
                "objective='elbo' weighs its KL by 1 / num_train_examples, the number of training rows, which nobody "
                "said. Train with fit or SVITrainer, which count them, or call "
                "model.set_num_train_examples(len(train_dataset)) before your own loop."
            )

    def factor_shape(self, group: AdapterGroup) -> tuple[int, ...]:
        """([outer,] adapter, [component,] rank, rank): of the covariance factors that the group's columns have."""
        return (*self.outer_shape, len(group), *self.component_shape, group.rank, group.rank)

    def group_wishart(self, group: AdapterGroup, scale: Tensor) -> Wishart:
        """Of the group's covariances, (adapter, [1]) beside the components, given v (adapter, rank) of its rank."""
        df, v = self.prior_wishart(group.rank).df[self._rows(group)], scale[self._rows(group)]
        if self.component_shape:
            df, v = df.unsqueeze(-1), v.unsqueeze(-2)
        return Wishart(df, v, validate_args=False)

    def _sample_covariances(self, rank: int, fn: Wishart) -> Callable[[], Tensor]:
        """Open the Sigma of all adapters of this rank; returns what gives their factors ([outer,] adapter, rank, rank).

        Not the factors themselves: the model needs none, and a covariance set from outside has to be decomposed.
        """
        name = self.covariance_site(rank)
        with self._handlers[f"_r{rank}"]:
            covariance = pyro.sample(name, fn)
        return cache(lambda: _as_shape(name, cholesky_factor(covariance), fn.batch_shape + fn.event_shape))

    def _rows(self, group: AdapterGroup) -> slice:
        """Where the group's adapters stand among all of their rank."""
        first = self.ranks[group.rank].start
        return slice(group.start - first, group.stop - first)

    def _group_factors(self, group: AdapterGroup, factors: Callable[[], Tensor]) -> Tensor:
        factor = factors()[..., self._rows(group), :, :]
        return (factor.unsqueeze(-3) if self.component_shape else factor).expand(self.factor_shape(group))

    def _make_handlers(self) -> dict[str, SiteHandler]:
        """For each site's suffix its plates and weight; plates are named with the suffix, since their sizes and
        places are that site's own."""
        outer = {"outer": self.outer_shape}
        sizes = {"": {**outer, "adapter": (len(self.adapters),)}}
        for rank, members in self.ranks.items():
            sizes[f"_r{rank}"] = {**outer, "adapter": (members.stop - members.start,)}
        for group in self.groups:
            inside = {"adapter": (len(group),), "component": self.component_shape, "column": (group.in_features,)}
            sizes[group.suffix] = {**outer, **inside}
        weight, handlers = self._weight(), {}
        for suffix, shapes in sizes.items():
            draws = [shape[0] for name, shape in shapes.items() if shape and name in ("component", "column")]
            averaged = math.prod(draws) if self.config.objective == "paper" else 1
            plates = {name + suffix: shape[0] for name, shape in shapes.items() if shape}
            handlers[suffix] = SiteHandler(plates, weight / averaged)
        return handlers

    def _weight(self) -> float:
        """Of a site's KL: eta per adapter and outer draw (and column draw); or temperature per training example."""
        config = self.config
        if config.objective == "elbo":
            # As long as the number of examples is not known, no loss is computed: see `require_weight`.
            return config.kl_temperature / (config.num_train_examples or 1)  # type: ignore[operator]
        return config.kl_weight / len(self.adapters) / config.num_outer_samples  # type: ignore[operator]


def _as_shape(site: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The value without the dimensions of size 1 that `Predictive` puts before a site's own."""
    if value.shape == shape:
        return value
    if value.numel() != torch.Size(shape).numel():
        raise UnsupportedELBOError(
            f"site {site!r} has a value of shape {tuple(value.shape)} instead of {tuple(shape)}: draws vectorized over "
            "an outer plate are not supported. Drop vectorize_particles=True, and parallel=True of Predictive."
        )
    return value.reshape(shape)
