"""The sample sites of the posterior over LoRA-A: names, shapes, plates and scales, the same for model and guide.

Both sides open the same sites in the same order under the same scales, from here, because Pyro does not notice
when they differ: `TraceMeanField_ELBO` scales an analytic KL by the guide's scale alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayes_lora.adapters import AdapterGroup, find_adapters, group_by_shape, perturb_linears
from bayes_lora.column_normal import ColumnNormal
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import UnsupportedELBOError
from bayes_lora.precision import posterior_dtype
from bayes_lora.wishart import Wishart, cholesky_factor

# Given a group, its mixture weights pi (..., adapter, component) and a function that gives its covariance factors
# (..., adapter, [component,] rank, rank): the distribution of the group's column site.
ColumnDistribution = Callable[[AdapterGroup, Tensor, Callable[[], Tensor]], ColumnNormal]


@dataclass(frozen=True)
class Latents:
    """One draw of the mixture weights, pi ([outer,] adapter, component), and of each group's columns."""

    weights: Tensor
    columns: tuple[Tensor, ...]


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
        self.switch = perturb_linears(network, self.adapters)
        self._df: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        self._site_plates = self._make_plates()

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
    def outer_shape(self) -> tuple[int, ...]:
        """(M,) where M > 1, else ()."""
        return () if self.config.num_outer_samples == 1 else (self.config.num_outer_samples,)

    @property
    def component_shape(self) -> tuple[int, ...]:
        """(N,) where the components are drawn one by one, else ()."""
        return (self.config.num_components,) if self.config.sampler == "explicit" else ()

    def df(self, rank: int) -> Tensor:
        """Degrees of freedom (adapter,) of the adapters of this rank: one tensor, shared by model and guide."""
        like = self.example
        key = (rank, like.device, like.dtype)
        if key not in self._df:
            self._df[key] = like.new_tensor(self.degrees_of_freedom[self.ranks[rank]])
        return self._df[key]

    def prior_wishart_scale(self, rank: int) -> Tensor:
        """c of the adapters of this rank, repeated to (adapter, rank)."""
        scale = [self.config.wishart_scale(df) for df in self.degrees_of_freedom[self.ranks[rank]]]
        return self.example.new_tensor(scale).unsqueeze(-1).expand(-1, rank)

    def column_site(self, group: AdapterGroup) -> str:
        """Name of the group's site: S, the noise, or A itself."""
        return ("S" if self.config.objective == "paper" else "A") + group.suffix

    def means(self, group: AdapterGroup) -> Tensor:
        """mu of the group's adapters, by column: (adapter, column, rank)."""
        like = self.example
        return torch.stack([adapter.linear.weight.to(like) for adapter in self.adapters[group.start : group.stop]]).mT

    def sample(
        self, concentration: Tensor, wishart_scale: Mapping[int, Tensor], columns: ColumnDistribution
    ) -> Latents:
        """Open every site, in the order pi, Sigma, columns.

        Args:
            concentration: (adapter, component) of the Dirichlet.
            wishart_scale: for each rank, v (adapter, rank).
            columns: the distribution of a group's columns given its pi and covariance factors.
        """
        outer = self.outer_shape
        with self._scale(), self._plates(""):
            pi = pyro.sample("pi", dist.Dirichlet(concentration.expand(*outer, -1, -1), validate_args=False))
        pi = _as_shape("pi", pi, (*outer, *concentration.shape))
        factors: dict[int, Callable[[], Tensor]] = {}
        values = []
        for group in self.groups:
            if group.rank not in factors:
                factors[group.rank] = self._sample_covariances(group.rank, wishart_scale[group.rank])
            fn = columns(
                group, pi[..., group.start : group.stop, :], partial(self._group_factors, group, factors[group.rank])
            )
            with self._scale(draws=fn), self._plates(group.suffix):
                value = pyro.sample(self.column_site(group), fn)
            values.append(_as_shape(self.column_site(group), value, fn.batch_shape + fn.event_shape))
        return Latents(pi, tuple(values))

    def factor_shape(self, group: AdapterGroup) -> tuple[int, ...]:
        """([outer,] adapter, [component,] rank, rank): of the covariance factors that the group's columns have."""
        return (*self.outer_shape, len(group), *self.component_shape, group.rank, group.rank)

    def group_wishart(self, group: AdapterGroup, scale: Tensor) -> Wishart:
        """Of the group's covariances, (adapter, [1]) beside the components, given v (adapter, rank) of its rank."""
        df, v = self.df(group.rank)[self._rows(group)], scale[self._rows(group)]
        if self.component_shape:
            df, v = df.unsqueeze(-1), v.unsqueeze(-2)
        return Wishart(df, v, validate_args=False)

    def _sample_covariances(self, rank: int, scale: Tensor) -> Callable[[], Tensor]:
        """Open the Sigma of all adapters of this rank; returns what gives their factors ([outer,] adapter, rank, rank).

        Not the factors themselves: the model needs none, and a covariance set from outside has to be decomposed.
        """
        name, outer, num_adapters = f"Sigma_r{rank}", self.outer_shape, scale.shape[0]
        fn = Wishart(self.df(rank), scale, validate_args=False)
        with self._scale(), self._plates(f"_r{rank}"):
            covariance = pyro.sample(name, fn.expand((*outer, num_adapters)) if outer else fn)
        return cache(lambda: _as_shape(name, cholesky_factor(covariance), (*outer, num_adapters, rank, rank)))

    def _rows(self, group: AdapterGroup) -> slice:
        """Where the group's adapters stand among all of their rank."""
        first = self.ranks[group.rank].start
        return slice(group.start - first, group.stop - first)

    def _group_factors(self, group: AdapterGroup, factors: Callable[[], Tensor]) -> Tensor:
        factor = factors()[..., self._rows(group), :, :]
        return (factor.unsqueeze(-3) if self.component_shape else factor).expand(self.factor_shape(group))

    def _make_plates(self) -> dict[str, list[pyro.plate]]:
        """For each site's suffix its plates, from left to right, named with the suffix, since their sizes and places
        are that site's own. Made once: each costs more to make than a small distribution to sample."""
        outer = {"outer": self.outer_shape}
        sizes = {"": {**outer, "adapter": (len(self.adapters),)}}
        for rank, members in self.ranks.items():
            sizes[f"_r{rank}"] = {**outer, "adapter": (members.stop - members.start,)}
        for group in self.groups:
            inside = {"adapter": (len(group),), "component": self.component_shape, "column": (group.in_features,)}
            sizes[group.suffix] = {**outer, **inside}
        plates = {}
        for suffix, shapes in sizes.items():
            present = [(name + suffix, shape[0]) for name, shape in shapes.items() if shape]
            dims = range(-len(present), 0)
            plates[suffix] = [pyro.plate(name, size, dim=dim) for (name, size), dim in zip(present, dims, strict=True)]
        return plates

    @contextmanager
    def _plates(self, suffix: str) -> Iterator[None]:
        with ExitStack() as stack:
            for plate in self._site_plates[suffix]:
                stack.enter_context(plate)
            yield

    def _scale(self, draws: ColumnNormal | None = None) -> AbstractContextManager[object]:
        """Weight of a site's KL: eta per adapter, outer draw and column draw; or temperature per training example."""
        config = self.config
        if config.objective == "elbo":
            weight = config.temperature / config.num_train_examples  # type: ignore[operator]
        else:
            weight = config.kl_weight / len(self.adapters) / config.num_outer_samples  # type: ignore[operator]
            if draws is not None:
                weight /= draws.num_columns * math.prod(self.component_shape)
        # poutine.scale takes no zero.
        return poutine.scale(scale=weight) if weight > 0 else poutine.mask(mask=False)  # type: ignore[no-any-return]


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
