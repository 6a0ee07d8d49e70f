"""Simulation-based calibration: even ranks for the right posterior, uneven ones for the control."""

from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.ground_truth.calibration import (
    NUM_DRAWS,
    Ranks,
    monteclora_sampler,
    rank_truth,
    sample_exact,
    sample_nuts,
    sample_too_narrow,
)
from bayes_lora.experiments.ground_truth.problems import Problem, regression_problem

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


def test_right_posteriors_are_called_uneven_as_rarely_as_declared() -> None:
    """P-values of even ranks, 300 times: at 5 % no more rejections than the binomial's 99.9th percentile."""
    generator = torch.Generator().manual_seed(0)
    trials = [Ranks(torch.randint(0, NUM_DRAWS + 1, (200, 11), generator=generator)) for _ in range(300)]
    rejected = sum(ranks.p_value < 0.05 for ranks in trials)
    assert rejected <= stats.binom.ppf(0.999, len(trials), 0.05)
    assert rejected > 0  # the test does reject


def test_few_replications_say_nothing() -> None:
    right = rank_truth(regression_problem, sample_exact, range(40))
    assert right.verdict == "even"
    assert Ranks(right.values[:39]).verdict == "too few"
    assert rank_truth(regression_problem, sample_too_narrow, range(60)).verdict == "uneven"


def test_parts_put_together_are_the_whole() -> None:
    whole = rank_truth(tiny_problem, sample_exact, range(6)).values
    parts = [rank_truth(tiny_problem, sample_exact, part).values for part in (range(2), range(2, 6))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, rank_truth(tiny_problem, sample_exact, range(6), seed=1).values)


def test_ranks_count_the_draws_below_the_truth() -> None:
    def sample_ladder(problem: Problem, num_draws: int, seed: int) -> Tensor:
        steps = torch.arange(num_draws, dtype=torch.float64) - 9.5  # ten of them below the truth
        return problem.true_a + steps[:, None, None]

    assert (rank_truth(tiny_problem, sample_ladder, range(2)).values[:, :-1] == 10).all()


def test_ranks_must_share_the_bins() -> None:
    with pytest.raises(ConfigurationError, match="num_draws=60 gives 61 ranks, which 8 bins cannot share"):
        Ranks(torch.zeros(1, 1, dtype=torch.long), num_draws=60)


def test_monteclora_is_ranked_like_any_other() -> None:
    ranks = rank_truth(tiny_problem, monteclora_sampler(20), range(2))
    assert ranks.values.shape == (2, 4)
    assert (ranks.values >= 0).all()
    assert (ranks.values <= NUM_DRAWS).all()


@pytest.mark.slow
def test_nuts_has_even_ranks() -> None:
    assert rank_truth(tiny_problem, sample_nuts, range(64)).is_uniform
