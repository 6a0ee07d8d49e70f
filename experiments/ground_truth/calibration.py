"""Simulation-based calibration: does the truth look like one of the posterior's draws?

A is drawn from the prior, labels from A, and L draws from the posterior given the labels. If that posterior is right,
the rank of the true value of any quantity among its draws is uniform on 0, ..., L (Talts et al. 2018, arXiv
1804.06788, Theorem 1). Ranks that pile up at both ends tell of a posterior that is too narrow, ranks in the middle of
one too wide, a slope of a shift.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from scipy import stats
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.ground_truth.methods import draw_adapter, fit_monteclora
from bayes_lora.experiments.ground_truth.nuts import run_chain
from bayes_lora.experiments.ground_truth.problems import GaussianPosterior, Problem, exact_posterior
from bayes_lora.randomness import stream

NUM_DRAWS = 63  # 64 ranks: every bin below holds the same number of them
NUM_BINS = 8
FAILURE_RATE = 1e-3  # that the ranks of a right posterior are called uneven
_THINNING, _WARMUP = 3, 200
_LEAST_IN_BIN = 5

# Gives independent draws of A (draw, rank, in_features) from the posterior of a problem: how many, and a seed.
PosteriorSampler = Callable[[Problem, int, int], Tensor]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the truth among posterior draws.

    Attributes:
        values: whole numbers from 0 to num_draws, (replication, quantity): the entries of A, by rows, and the
            log-likelihood of the training rows.
        num_draws: L.
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
    make_problem: Callable[[int], Problem],
    sampler: PosteriorSampler,
    replications: range,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> Ranks:
    """Simulate problems, sample their posteriors, rank their truths.

    Args:
        make_problem: makes a problem from a seed, its true A from the prior and its labels from that A.
        sampler: the posterior on trial.
        replications: which ones: replication i depends on (seed, i) only, so that parts can be put together.
        seed: of all of them.
        num_draws: L.

    Example:
        >>> rank_truth(regression_problem, sample_exact, range(200)).is_uniform  # doctest: +SKIP
    """
    ranks = []
    for replication in replications:
        of_problem, of_draws = (stream(stream(seed, replication), part) for part in range(2))
        problem = make_problem(of_problem)
        draws = sampler(problem, num_draws, of_draws)
        ranks.append((_quantities(problem, draws) < _quantities(problem, problem.true_a)).sum(0))
    return Ranks(torch.stack(ranks), num_draws)


def sample_exact(problem: Problem, num_draws: int, seed: int) -> Tensor:
    """From the closed form of a regression."""
    return exact_posterior(problem).sample(num_draws, torch.Generator().manual_seed(seed))


def sample_too_narrow(problem: Problem, num_draws: int, seed: int) -> Tensor:
    """The control, which must fail: the closed form with a quarter of its variance."""
    exact = exact_posterior(problem)
    narrow = GaussianPosterior(exact.mean, exact.covariance / 4)
    return narrow.sample(num_draws, torch.Generator().manual_seed(seed))


def sample_nuts(problem: Problem, num_draws: int, seed: int) -> Tensor:
    """One chain, every third draw of it, so that they are all but independent."""
    return run_chain(problem, num_draws * _THINNING, _WARMUP, seed)[_THINNING - 1 :: _THINNING]


def monteclora_sampler(num_steps: int) -> PosteriorSampler:
    """MonteCLoRA under objective "elbo", N = 4, dense, started with the prior's spread, fitted in so many steps."""
    return partial(_sample_monteclora, num_steps)


def _sample_monteclora(num_steps: int, problem: Problem, num_draws: int, seed: int) -> Tensor:
    model, guide = fit_monteclora(problem, num_steps, stream(seed, 0), sample_scale=problem.prior_scale)
    return draw_adapter(model, guide, num_draws, stream(seed, 1))


def _quantities(problem: Problem, a: Tensor) -> Tensor:
    """(..., quantity) of A (..., rank, in_features)."""
    return torch.cat([a.flatten(-2), problem.log_likelihood(a).unsqueeze(-1)], dim=-1)
