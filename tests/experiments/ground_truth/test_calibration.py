"""Simulation-based calibration: even ranks for the right posterior, uneven ones for the control."""

from functools import partial

import pytest
import torch
from torch import Tensor

from bayes_lora.experiments.ground_truth.calibration import (
    monteclora_sampler,
    rank_truth,
    sample_exact,
    sample_nuts,
    sample_too_narrow,
)
from bayes_lora.experiments.ground_truth.problems import Problem, regression_problem
from bayes_lora.inference.diagnostics.simulation_based_calibration import NUM_DRAWS

# Three unknowns, the smallest that has a covariance to get wrong.
tiny_problem = partial(regression_problem, num_examples=12, num_test=2, in_features=3, rank=1)


def test_the_exact_posterior_has_even_ranks() -> None:
    assert rank_truth(regression_problem, sample_exact, range(400)).is_uniform


def test_a_too_narrow_posterior_has_ranks_at_both_ends() -> None:
    ranks = rank_truth(regression_problem, sample_too_narrow, range(100))
    assert not ranks.is_uniform
    of_entries = ranks.counts[:-1].sum(0)
    assert of_entries[[0, -1]].sum() > 2 * of_entries[1:-1].mean(dtype=torch.float64) * 2


def test_a_shifted_posterior_has_ranks_at_one_end() -> None:
    def sample_shifted(problem: Problem, num_draws: int, seed: int) -> Tensor:
        return sample_exact(problem, num_draws, seed) + 0.3

    ranks = rank_truth(regression_problem, sample_shifted, range(100))
    assert not ranks.is_uniform
    assert ranks.values[:, :-1].double().mean() < 0.4 * NUM_DRAWS


def test_ranks_count_the_draws_below_the_truth() -> None:
    def sample_ladder(problem: Problem, num_draws: int, seed: int) -> Tensor:
        steps = torch.arange(num_draws, dtype=torch.float64) - 9.5  # ten of them below the truth
        return problem.true_a + steps[:, None, None]

    assert (rank_truth(tiny_problem, sample_ladder, range(2)).values[:, :-1] == 10).all()


def test_monteclora_is_ranked_like_any_other() -> None:
    ranks = rank_truth(tiny_problem, monteclora_sampler(20), range(2))
    assert ranks.values.shape == (2, 4)
    assert (ranks.values >= 0).all()
    assert (ranks.values <= NUM_DRAWS).all()


@pytest.mark.slow
def test_nuts_has_even_ranks() -> None:
    assert rank_truth(tiny_problem, sample_nuts, range(64)).is_uniform
