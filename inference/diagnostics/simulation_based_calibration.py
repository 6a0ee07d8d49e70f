"""Simulation-based calibration: does the truth look like one of the posterior's draws?

The truth is drawn from the prior, data from the truth, and L draws from the posterior given the data. If that posterior
is right, the rank of the true value of any quantity among its draws is uniform on 0, ..., L (Talts et al. 2018, arXiv
1804.06788, Theorem 1). Ranks that pile up at both ends tell of a posterior that is too narrow, ranks in the middle of
one too wide, a slope of a shift.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from scipy import stats
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.randomness import stream

NUM_DRAWS = 63  # 64 ranks: every bin below holds the same number of them
NUM_BINS = 8
FAILURE_RATE = 1e-3  # that the ranks of a right posterior are called uneven
_LEAST_IN_BIN = 5

Data = TypeVar("Data")


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the truth among posterior draws.

    Attributes:
        values: whole numbers from 0 to num_draws, (replication, quantity).
        num_draws: L.

    Raises:
        ConfigurationError: a number of draws whose ranks the bins cannot share evenly.
    """

    values: Tensor
    num_draws: int = NUM_DRAWS

    def __post_init__(self) -> None:
        if (self.num_draws + 1) % NUM_BINS:
            raise ConfigurationError(
                f"num_draws={self.num_draws} gives {self.num_draws + 1} ranks, which {NUM_BINS} bins cannot share "
                f"evenly. Use {NUM_DRAWS}."
            )

    @property
    def counts(self) -> Tensor:
        """Replications in each bin of ranks, (quantity, bin)."""
        bins = self.values * NUM_BINS // (self.num_draws + 1)
        return torch.stack([torch.bincount(column, minlength=NUM_BINS) for column in bins.unbind(1)])

    @property
    def p_value(self) -> float:
        """Of the least even quantity's chi-square test, times the number of quantities (Bonferroni), at most 1."""
        p = stats.chisquare(self.counts.numpy(), axis=1).pvalue
        return min(1.0, float(p.min()) * len(p))

    @property
    def is_uniform(self) -> bool:
        """Whether uniformity is not rejected at `FAILURE_RATE`."""
        return self.p_value >= FAILURE_RATE

    @property
    def verdict(self) -> str:
        """The test's outcome in a word; below five expected in a bin the test says nothing (Cochran 1954)."""
        if len(self.values) < _LEAST_IN_BIN * NUM_BINS:
            return "too few"
        return "even" if self.is_uniform else "uneven"


def rank_truth(
    simulate: Callable[[int], tuple[Data, Tensor]],
    sampler: Callable[[Data, int, int], Tensor],
    quantities: Callable[[Data, Tensor], Tensor],
    replications: range,
    *,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> Ranks:
    """Simulate data, sample the posteriors, rank the truths.

    Args:
        simulate: from a seed, data and the parameters (...) that they were made with, which come from the prior.
        sampler: the posterior on trial: of data, how many and a seed, independent draws (draw, ...).
        quantities: of data and parameters (..., *shape of the parameters), what is ranked, (..., quantity).
        replications: which ones: replication i depends on (seed, i) only, so that parts can be put together.
        seed: of all of them.
        num_draws: L.

    Raises:
        ConfigurationError: see `Ranks`.

    Example:
        >>> def simulate(seed: int) -> tuple[Tensor, Tensor]:  # theta ~ N(0, 1), y ~ N(theta, 1)
        ...     theta, noise = torch.randn(2, 1, generator=torch.Generator().manual_seed(seed))
        ...     return theta + noise, theta
        >>> def posterior(y: Tensor, num_draws: int, seed: int) -> Tensor:  # N(y / 2, 1 / 2)
        ...     return y / 2 + 0.5**0.5 * torch.randn(num_draws, 1, generator=torch.Generator().manual_seed(seed))
        >>> rank_truth(simulate, posterior, lambda y, theta: theta, range(200)).verdict
        'even'
    """
    ranks = []
    for replication in replications:
        of_data, of_draws = (stream(stream(seed, replication), part) for part in range(2))
        data, truth = simulate(of_data)
        draws = sampler(data, num_draws, of_draws)
        ranks.append((quantities(data, draws) < quantities(data, truth)).sum(0))
    return Ranks(torch.stack(ranks), num_draws)
