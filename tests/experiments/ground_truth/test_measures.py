"""Measures: closed forms between normal posteriors, and the truth against itself."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from bayes_lora.experiments.ground_truth.measures import (
    compare,
    held_out_functions,
    interval_coverage,
    mean_and_error,
    predictive_kl,
)
from bayes_lora.experiments.ground_truth.problems import classification_problem, exact_posterior, regression_problem


def standard_normal_quantiles(number: int = 20_001) -> Tensor:
    levels = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    return torch.from_numpy(stats.norm.ppf(levels.numpy()))[:, None]


def test_truth_against_itself() -> None:
    problem = regression_problem(0)
    draws = exact_posterior(problem).sample(2000, torch.Generator().manual_seed(0))
    found = compare(problem, draws, draws)
    assert found.mean_error == 0
    assert found.mean_error_sd == 0
    assert found.log_variance_ratio == 0
    assert found.coverage_50 == pytest.approx(0.5, abs=1e-3)
    assert found.coverage_90 == pytest.approx(0.9, abs=1e-3)
    assert found.predictive_kl == pytest.approx(0, abs=1e-12)


def test_mean_and_variance_of_moved_and_stretched_draws() -> None:
    problem = regression_problem(0)
    truth = exact_posterior(problem).sample(500, torch.Generator().manual_seed(0))
    deviation, mean = truth.std(0), truth.mean(0)
    found = compare(problem, mean + 2 * (truth - mean) + 0.3 * deviation, truth)
    assert found.mean_error_sd == pytest.approx(0.3)
    assert found.mean_error == pytest.approx(float(0.3 * deviation.norm() / mean.norm()))
    assert found.log_variance_ratio == pytest.approx(math.log(4))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (1.0, 1.0)])
def test_coverage_of_normals(scale: float, shift: float) -> None:
    truth = standard_normal_quantiles()
    z = stats.norm.ppf(0.95)
    expected = stats.norm.cdf(shift + scale * z) - stats.norm.cdf(shift - scale * z)
    assert interval_coverage(shift + scale * truth, truth, 0.9) == pytest.approx(expected, abs=2e-4)


def test_predictive_kl_of_a_regression_is_that_of_normals() -> None:
    """Against the closed form's predictives; the tolerance is for covariances from 20,000 draws."""
    problem = regression_problem(0, num_outputs=1)
    exact = exact_posterior(problem)
    generator = torch.Generator().manual_seed(0)
    truth = exact.sample(20_000, generator)
    moved = exact.mean + 0.5 * (truth - exact.mean) + 0.2
    rows = torch.einsum("cj,ni->ncji", problem.head @ problem.expand, problem.test_inputs).flatten(2).squeeze(1)
    spread = torch.einsum("np,pq,nq->n", rows, exact.covariance, rows)
    distance = 0.2 * rows.sum(1)
    variance_p, variance_q = spread + 1, spread / 4 + 1
    expected = (variance_p / variance_q + distance.square() / variance_q - 1 - (variance_p / variance_q).log()) / 2
    assert predictive_kl(problem, moved, truth) == pytest.approx(float(expected.mean()), rel=0.02)


def test_predictive_kl_of_a_classification_by_hand() -> None:
    problem = classification_problem(0, num_test=2)
    a = torch.randn(2, 3, *problem.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = (problem.logits(draws, problem.test_inputs).softmax(-1).mean(0) for draws in a)
    by_hand = sum(float(p[row, c] * (p[row, c] / q[row, c]).log()) for row in range(2) for c in range(3)) / 2
    assert predictive_kl(problem, a[1], a[0]) == pytest.approx(by_hand)


def test_a_point_has_no_variance_and_covers_nothing() -> None:
    problem = classification_problem(0)
    truth = torch.randn(200, *problem.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = compare(problem, truth.mean(0, keepdim=True), truth)
    assert found.log_variance_ratio is None
    assert found.coverage_90 == 0
    assert found.mean_error == pytest.approx(0)


def test_functions_of_a_classification_leave_out_what_softmax_does_not_see() -> None:
    problem = classification_problem(0)
    functions = held_out_functions(problem, problem.true_a[None])
    torch.testing.assert_close(functions.sum(-1), torch.zeros(1, 50, dtype=torch.float64))
    logits = problem.logits(problem.true_a, problem.test_inputs)
    torch.testing.assert_close(functions[0].softmax(-1), logits.softmax(-1))


def test_mean_and_error_over_seeds() -> None:
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert mean_and_error([5.0]) == (5.0, None)
