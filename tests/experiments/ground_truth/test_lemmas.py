"""The lemmas by experiment: exact on a linear network, and measured on another."""

import pytest
import torch

from bayes_lora.experiments.ground_truth.lemmas import noisy_adapters, output_shift, smoothed_curvature
from bayes_lora.experiments.ground_truth.mode import hessians, posterior_mode
from bayes_lora.experiments.ground_truth.problems import classification_problem, regression_problem
from tests.statistics import assert_mean


def test_noise_is_monteclora_s() -> None:
    """Variance eps^2 nu E[sum pi^2], nu the rank 2 and E[sum pi^2] = 2 / 5."""
    problem = regression_problem(0)
    draws = noisy_adapters(problem, problem.true_a, 0.1, 1000, seed=0)
    assert_mean(draws, problem.true_a)
    assert_mean((draws - problem.true_a).square(), torch.full(problem.shape, 0.1**2 * 2 * 2 / 5, dtype=torch.float64))


def test_shift_of_a_linear_network_is_proportional() -> None:
    found = output_shift(regression_problem(0), (1e-3, 1e-2, 1e-1, 1.0), num_draws=150)
    assert abs(found.slope - 1) < 4 * found.standard_error
    assert found.standard_error < 0.03


def test_shift_of_a_saturating_network_is_less_than_proportional_for_large_noise() -> None:
    """The control: the slope is able to differ from 1."""
    problem = classification_problem(0)
    small, large = (output_shift(problem, scales, num_draws=150) for scales in ((1e-3, 1e-2), (1.0, 10.0)))
    assert small.slope == pytest.approx(1, abs=0.15)
    assert large.slope < 0.7


def test_curvature_of_a_quadratic_loss_does_not_change() -> None:
    found = smoothed_curvature(regression_problem(0), 0.3, num_draws=20)
    assert found.smoothed == pytest.approx(found.original)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_smoothing_lowers_the_curvature_of_a_classification() -> None:
    problem = classification_problem(0)
    found = smoothed_curvature(problem, 1.0, num_draws=200)
    assert found.smoothed + 4 * found.standard_error < found.original
    assert found.smoothed <= found.largest


def test_smoothed_curvature_against_one_draw_at_a_time() -> None:
    problem = classification_problem(0)
    found = smoothed_curvature(problem, 0.5, num_draws=10, seed=3)
    mode = posterior_mode(problem)
    total = torch.zeros(10, 10, dtype=torch.float64)
    for a in noisy_adapters(problem, mode, 0.5, 10, seed=3):
        total -= hessians(problem.log_likelihood, a) / len(problem.inputs) / 10
    assert found.smoothed == pytest.approx(float(torch.linalg.eigvalsh(total)[-1]))
