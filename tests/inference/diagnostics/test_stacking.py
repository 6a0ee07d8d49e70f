"""Stacking weights against their closed form."""

import numpy as np
import pytest

from bayes_lora.inference.diagnostics.stacking import stacking_weights


@pytest.mark.parametrize(("first", "high", "low"), [(3, 0.9, 0.2), (5, 0.6, 0.3), (1, 0.9, 0.05)])
def test_two_methods(first: int, high: float, low: float) -> None:
    """One is right about `first` of 10 rows, the other about the rest: d/dw of the sum of logs is 0 at

    w (high - low) + low = first / 10 (high + low).
    """
    densities = np.array([[high, low]] * first + [[low, high]] * (10 - first))
    expected = np.clip((first / 10 * (high + low) - low) / (high - low), 0, 1)
    for offset in (0.0, -2000.0):  # of rows that every method finds improbable; the weights do not depend on it
        found = stacking_weights(np.log(densities) + offset)
        np.testing.assert_allclose(found, [expected, 1 - expected], atol=1e-4)


def test_the_best_in_every_row_takes_all() -> None:
    better = np.random.default_rng(0).normal(size=(20, 1))
    np.testing.assert_allclose(stacking_weights(better - [0.5, 0, 1.0]), [0, 1, 0], atol=1e-6)


def test_no_other_weights_predict_better() -> None:
    """Against all weights of three methods on a grid."""
    log_densities = np.random.default_rng(1).normal(size=(50, 3))

    def score(weights: np.ndarray) -> float:
        return float(np.log(np.exp(log_densities) @ weights).sum())

    found = stacking_weights(log_densities)
    assert found.sum() == pytest.approx(1)
    grid = [np.array([a, b, 40 - a - b]) / 40 for a in range(41) for b in range(41 - a)]
    best = max(grid, key=score)
    assert score(best) <= score(found) + 1e-9
    np.testing.assert_allclose(found, best, atol=0.05)
