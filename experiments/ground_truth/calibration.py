"""Simulation-based calibration of the problems with a known posterior: who gives their posteriors, and what is ranked.

The method and its test are those of `bayes_lora.inference.diagnostics.simulation_based_calibration`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bayes_lora.experiments.ground_truth.methods import draw_adapter, fit_monteclora
from bayes_lora.experiments.ground_truth.nuts import run_chain
from bayes_lora.experiments.ground_truth.problems import GaussianPosterior, Problem, exact_posterior
from bayes_lora.inference.diagnostics import simulation_based_calibration
from bayes_lora.inference.diagnostics.simulation_based_calibration import NUM_DRAWS, Ranks
from bayes_lora.randomness import stream

_THINNING, _WARMUP = 3, 200

# Gives independent draws of A (draw, rank, in_features) from the posterior of a problem: how many, and a seed.
PosteriorSampler = Callable[[Problem, int, int], Tensor]


def rank_truth(
    make_problem: Callable[[int], Problem],
    sampler: PosteriorSampler,
    replications: range,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> Ranks:
    """Simulate problems, sample their posteriors, rank their truths: the entries of A, by rows, and the log-likelihood.

    Args:
        make_problem: makes a problem from a seed, its true A from the prior and its labels from that A.
        sampler: the posterior on trial.
        replications: which ones, see `simulation_based_calibration.rank_truth`.
        seed: of all of them.
        num_draws: L.

    Example:
        >>> rank_truth(regression_problem, sample_exact, range(200)).is_uniform  # doctest: +SKIP
    """

    def simulate(seed: int) -> tuple[Problem, Tensor]:
        problem = make_problem(seed)
        return problem, problem.true_a

    return simulation_based_calibration.rank_truth(
        simulate, sampler, _quantities, replications, seed=seed, num_draws=num_draws
    )


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
