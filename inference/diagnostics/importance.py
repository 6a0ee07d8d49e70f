"""Pareto smoothed importance weights, and how far they can be trusted."""

import math

import numpy as np
from numpy.typing import NDArray

from bayes_lora.inference.diagnostics import arviz_bridge


def pareto_smoothed(
    log_ratios: NDArray[np.float64], resolution: float = 1e-9
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ArviZ's Pareto smoothed importance weights: log weights (..., draw) that sum to 1, and k-hat (...).

    Ratios that differ by rounding alone have no tail, which ArviZ reports as a k-hat of inf: here it is -inf.

    Args:
        log_ratios: (..., draw).
        resolution: differences up to this are rounding.
    """
    weights, shapes = arviz_bridge.smoothed_log_weights(np.asarray(log_ratios, dtype=np.float64))
    return weights, np.where(np.ptp(log_ratios, axis=-1) <= resolution, -math.inf, shapes)


def k_hat_threshold(num_draws: int) -> float:
    """k-hat up to which `num_draws` draws are enough, min(1 - 1 / log10(S), .7)."""
    return min(1 - 1 / math.log10(num_draws), 0.7)
