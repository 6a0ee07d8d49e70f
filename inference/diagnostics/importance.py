"""Pareto smoothed importance weights, and how far they can be trusted."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

Array = NDArray[np.float64]

_FEWEST_IN_TAIL = 5  # below, the distribution of the tail cannot be fitted
_LOWEST = math.log(np.finfo(np.float64).tiny)


def pareto_smoothed(log_ratios: Array, resolution: float = 1e-9) -> tuple[Array, Array]:
    """Pareto smoothed importance weights of independent draws, and k-hat, which says whether they can be relied on.

    Of S draws the largest M = min(S / 5, 3 sqrt(S)) ratios are replaced by as many quantiles of a generalized Pareto
    distribution that is fitted to them; k-hat is its shape. It is computed here, since releases of ArviZ differ in M
    and in what they do with ratios that agree:

    - the largest M agree, as all do where the draws are those of the target itself: the weights are bounded, and k-hat
      is -inf;
    - fewer than 5 lie above the others: nothing can be fitted, and k-hat is inf.

    Args:
        log_ratios: (..., draw) ln target - ln proposal, up to a constant.
        resolution: differences up to this are rounding.

    Returns:
        log weights (..., draw) that sum to 1, and k-hat (...).

    Source: Vehtari et al., "Pareto smoothed importance sampling", JMLR 25 (2024), arXiv 1507.02646, algorithm 1.
    """
    ratios = np.asarray(log_ratios, dtype=np.float64)
    weights, shapes = np.empty(ratios.shape), np.empty(ratios.shape[:-1])
    for row in np.ndindex(shapes.shape):
        weights[row], shapes[row] = _smoothed(ratios[row], resolution)
    return weights, shapes


def leave_one_out_weights(log_likelihood: Array, kl_temperature: float) -> tuple[Array, Array]:
    """Pareto smoothed weights that take a row out of the posterior, for each row.

        ln w_is = - 1/T ln p(y_i | draw s) + const

    since the posterior at temperature T has each row's likelihood to the power 1 / T.

    Args:
        log_likelihood: (..., draw), nats.
        kl_temperature: T.

    Returns:
        log weights (..., draw) that sum to 1, and k-hat (...).

    Source: Vehtari, Gelman & Gabry, Statistics and Computing 27 (2017), section 2.1, which is T = 1.
    """
    return pareto_smoothed(-log_likelihood / kl_temperature, resolution=1e-9 / min(kl_temperature, 1.0))


def k_hat_threshold(num_draws: int) -> float:
    """k-hat up to which `num_draws` draws are enough, min(1 - 1 / log10(S), .7)."""
    return min(1 - 1 / math.log10(num_draws), 0.7)


def _smoothed(log_ratios: Array, resolution: float) -> tuple[Array, float]:
    """Of one set of ratios (draw,)."""
    values = log_ratios - log_ratios.max()
    order = np.argsort(values)
    size = math.ceil(min(len(values) / 5, 3 * math.sqrt(len(values))))
    if values[order[-size if size >= _FEWEST_IN_TAIL else 0]] >= -resolution:
        return values - logsumexp(values), -math.inf
    cutoff = max(values[order[-size - 1]], _LOWEST)
    tail = order[values[order] > cutoff]  # ascending
    if len(tail) < _FEWEST_IN_TAIL:
        return values - logsumexp(values), math.inf
    shape, scale = _fit_generalized_pareto(np.expm1(values[tail] - cutoff))
    positions = np.arange(0.5, len(tail)) / len(tail)
    quantiles = scale * np.expm1(-shape * np.log1p(-positions)) / shape
    values[tail] = np.minimum(cutoff + np.log1p(quantiles), 0)
    return values - logsumexp(values), shape


def _fit_generalized_pareto(excesses: Array) -> tuple[float, float]:
    """Shape and scale, given excesses (tail,) over the cutoff, ascending.

    Zhang and Stephens (2009), Technometrics 51; the shape is pulled towards .5 by the weight of 10 excesses, as the
    appendix of Vehtari et al. has it.
    """
    num = len(excesses)
    num_candidates = 30 + int(math.sqrt(num))
    candidates = 1 - np.sqrt(num_candidates / (np.arange(1, num_candidates + 1) - 0.5))
    candidates = candidates / (3 * excesses[int(num / 4 + 0.5) - 1]) + 1 / excesses[-1]
    candidates = candidates[candidates != 0]  # there the density is that of the exponential distribution, a limit
    shapes = np.log1p(-candidates[:, None] * excesses).mean(1)
    weights = softmax(num * (np.log(-candidates / shapes) - shapes - 1))
    # A candidate of no weight can be so large that rounding would give it some.
    weights = np.where(weights < 10 * np.finfo(np.float64).eps, 0, weights)
    best = float(weights @ candidates / weights.sum())
    shape = float(np.log1p(-best * excesses).mean())
    return (num * shape + 10 * 0.5) / (num + 10), -shape / best
