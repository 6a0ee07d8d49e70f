"""Pareto smoothing: what it says of ratios whose tail is known, and the installed ArviZ where that answers the same."""

import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from bayes_lora.inference.diagnostics.arviz_bridge import arviz
from bayes_lora.inference.diagnostics.importance import k_hat_threshold, pareto_smoothed


def of_arviz(log_ratios: Any) -> tuple[Any, Any]:
    if hasattr(arviz(), "psislw"):
        return arviz().psislw(log_ratios)  # type: ignore[no-any-return]
    # 1.x takes log likelihoods, whose ratios in leave-one-out cross-validation are their negatives.
    stats = import_module("arviz_stats.base").array_stats
    return stats.psislw(-log_ratios, r_eff=1.0, axis=-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("num_draws", [30, 100, 400])  # where 0.23 and 1.x take a tail of the same length
@pytest.mark.parametrize("spread", [1e-4, 1.0, 5.0])
def test_it_is_arviz(num_draws: int, spread: float) -> None:
    log_ratios = spread * np.random.default_rng(num_draws).normal(size=(2, 10, num_draws))
    weights, k_hat = pareto_smoothed(log_ratios)
    expected_weights, expected_k_hat = of_arviz(log_ratios.copy())
    np.testing.assert_allclose(weights, expected_weights, atol=1e-10)
    np.testing.assert_allclose(k_hat, expected_k_hat, atol=1e-9)
    np.testing.assert_allclose(np.exp(weights).sum(-1), 1)


def test_the_shape_of_a_known_tail() -> None:
    """Ratios of a Pareto distribution with shape k have k-hat near k."""
    uniform = np.random.default_rng(0).uniform(size=(40, 2000))
    for k in (0.3, 0.7, 1.2):
        _, found = pareto_smoothed(-k * np.log(uniform))
        # 40 independent fits; the weak prior pulls each towards .5, by 10 draws' worth of some 135 in the tail.
        bias = abs(k - 0.5) * 10 / 135 + 0.02
        assert abs(found.mean() - k) < bias + 4 * found.std(ddof=1) / math.sqrt(40)


@pytest.mark.parametrize("num_draws", [1, 2, 10, 25, 100, 1000])
@pytest.mark.parametrize("noise", [0.0, 1e-12])
def test_draws_of_the_target_itself_have_perfect_weights(num_draws: int, noise: float) -> None:
    """Ratios that agree, but for rounding: no tail, equal weights, every draw counts."""
    rounding = noise * np.random.default_rng(0).normal(size=(3, num_draws))
    weights, k_hat = pareto_smoothed(-41.5 + rounding)
    assert k_hat.tolist() == [-math.inf] * 3
    np.testing.assert_allclose(weights, -math.log(num_draws), atol=1e-10)


def test_a_largest_ratio_that_many_draws_share() -> None:
    """80 of 100 draws have the largest ratio: weights are bounded, so there is no tail."""
    log_ratios = np.where(np.arange(100) % 5 == 0, -3.0, 0.0)
    weights, k_hat = pareto_smoothed(log_ratios)
    assert k_hat == -math.inf
    np.testing.assert_allclose(np.exp(weights), np.exp(log_ratios) / np.exp(log_ratios).sum())


@pytest.mark.parametrize(("num_draws", "outliers"), [(100, 1), (100, 4), (10, 1)])
def test_a_few_draws_with_all_the_weight(num_draws: int, outliers: int) -> None:
    """The negative control of the above: too few to fit a tail to, and not to be relied on."""
    log_ratios = np.zeros(num_draws)
    log_ratios[:outliers] = 10
    weights, k_hat = pareto_smoothed(log_ratios)
    assert k_hat == math.inf
    np.testing.assert_allclose(np.exp(weights), np.exp(log_ratios) / np.exp(log_ratios).sum())


def test_what_is_rounding_is_said() -> None:
    log_ratios = 1e-4 * np.random.default_rng(0).normal(size=200)
    assert pareto_smoothed(log_ratios, resolution=1e-3)[1] == -math.inf
    assert np.isfinite(pareto_smoothed(log_ratios)[1])


def test_threshold() -> None:
    assert [k_hat_threshold(n) for n in (100, 10**6)] == pytest.approx([0.5, 0.7])
