"""The slope of a loss: scipy's line on batch means, its interval at the declared rate, and a verdict for each case."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics import convergence

FAILURE_RATE = 1e-4  # of a simulation below, were the interval exact


def history_of(values: NDArray[np.floating[Any]], every: int = 5) -> list[dict[str, float]]:
    return [{"step": float(every * (i + 1)), "loss": float(value)} for i, value in enumerate(values)]


def noise(seed: int, count: int, memory: float = 0.0) -> NDArray[np.float64]:
    """Unit variance; each entry keeps the share `memory` of the one before."""
    fresh = np.random.default_rng(seed).normal(size=count)
    values = fresh.copy()
    for i in range(1, count):
        values[i] = memory * values[i - 1] + math.sqrt(1 - memory**2) * fresh[i]
    return values


def test_a_straight_line() -> None:
    found = convergence(history_of(3 - 0.02 * np.arange(100)), last=0.4, num_batches=8)
    assert found.slope == pytest.approx(-0.02 / 5)
    assert (found.first_step, found.last_step) == (305, 500)
    assert found.change == pytest.approx(-0.02 * 39)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert found.verdict == "still falling"
    assert found.flagged
    assert found.message.startswith("loss: still falling. From step 305 to 500 it changed by -0.78 (between -0.78 and")


def test_by_hand() -> None:
    values = 2 + 0.1 * noise(0, 60)
    found = convergence(history_of(values), last=0.5, num_batches=6, failure_rate=0.1, tolerance=1.0)
    means = [values[30 + 5 * b : 35 + 5 * b].mean() for b in range(6)]
    steps = [np.mean([5 * (31 + 5 * b + i) for i in range(5)]) for b in range(6)]
    (slope, intercept), covariance = np.polyfit(steps, means, 1, cov="unscaled")
    residual = np.array(means) - intercept - slope * np.array(steps)
    error = math.sqrt(covariance[0, 0] * (residual**2).sum() / 4)
    assert found.slope == pytest.approx(slope)
    assert found.standard_error == pytest.approx(error)
    margin = stats.t.ppf(0.95, 4) * error * 145
    assert (found.low, found.high) == pytest.approx((slope * 145 - margin, slope * 145 + margin))
    assert found.verdict == "converged"
    assert not found.flagged


@pytest.mark.parametrize(
    ("fall", "size", "tolerance", "verdict"),
    [
        (0.0, 0.01, 0.05, "converged"),
        (0.02, 0.001, 0.05, "converged"),  # it falls, significantly and by too little to matter
        (0.5, 0.05, 0.05, "still falling"),
        (-0.5, 0.05, 0.05, "rising"),
        (0.0, 1.0, 0.05, "too noisy to tell"),
        (0.1, 1.0, 0.05, "too noisy to tell"),
    ],
)
def test_verdicts(fall: float, size: float, tolerance: float, verdict: str) -> None:
    for seed in range(10):
        values = 1 - fall * np.linspace(0, 1, 200) + size * noise(seed, 200)
        found = convergence(history_of(values), last=1.0, tolerance=tolerance)
        assert found.verdict == verdict
        assert f"loss: {verdict}." in found.message
        assert found.flagged == (verdict != "converged")


NUM_SIMULATIONS = 400


def coverage(memory: float, num_batches: int) -> int:
    """How many 90 % intervals of the change hold the true one."""
    covered = 0
    for seed in range(NUM_SIMULATIONS):
        values = -0.3 * np.linspace(0, 1, 240) + noise(seed, 240, memory)
        found = convergence(history_of(values), last=1.0, failure_rate=0.1, num_batches=num_batches)
        covered += found.low <= -0.3 <= found.high
    return covered


def test_the_interval_keeps_its_rate_where_noise_has_a_memory() -> None:
    low, high = stats.binom.interval(1 - FAILURE_RATE, NUM_SIMULATIONS, 0.9)
    assert low <= coverage(memory=0.0, num_batches=10) <= high
    assert low <= coverage(memory=0.7, num_batches=10) <= high
    # Plain least squares, an entry a run, takes that noise for certainty.
    assert coverage(memory=0.7, num_batches=240) < low


def test_a_term_that_only_some_entries_have() -> None:
    history = [{"step": float(s), "loss": 1.0, **({"nll": 0.5} if s >= 50 else {})} for s in range(100)]
    found = convergence(history, term="nll", last=1.0)
    assert (found.term, found.first_step, found.verdict) == ("nll", 50, "converged")
    with pytest.raises(DataError, match=r"no entry of the history has a term 'kl'. It has: loss, nll\."):
        convergence(history, term="kl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 1.5}, r"last=1\.5 must lie between 0 and 1"),
        ({"tolerance": 0}, "tolerance=0 must be positive"),
        ({"failure_rate": 0}, "failure_rate=0 must lie between 0 and 1"),
        ({"num_batches": 3}, "num_batches=3 leaves no error to estimate. Give 4 or more"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        convergence(history_of(np.ones(50)), **options)


def test_histories_that_say_nothing() -> None:
    with pytest.raises(DataError, match=r"has a term 'loss'. It has: no entries"):
        convergence([])
    for last in (0.0, 0.5):
        with pytest.raises(DataError, match=r"of 'loss', and 10 runs were asked for. Fit with a smaller FitOptions"):
            convergence(history_of(np.ones(18)), last=last)
    with pytest.raises(DataError, match="'loss' is NaN or infinite"):
        convergence(history_of(np.append(np.ones(30), math.nan)))
