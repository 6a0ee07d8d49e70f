"""How much a metric moves over the cells of a grid: hyperparameters and seeds.

Source: arXiv 2411.04358, section 3.3, has intrinsic robustness, 1 / median(NLL), extrinsic robustness, the median of
accuracies, and the spread, max - min, all over the runs of a grid. The rest is added: a spread is set by the two most
extreme runs, and what a user loses who does not search the grid is what a user wants to know.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import DataError

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""From values (..., cell) to (...)."""


def spread(values: Array) -> Array:
    """max - min over cells, (..., cell) to (...)."""
    return np.asarray(values.max(-1) - values.min(-1))


def inter_quartile_range(values: Array) -> Array:
    """The difference of the quartiles (linear interpolation), (..., cell) to (...)."""
    low, high = np.quantile(values, [0.25, 0.75], axis=-1)
    return np.asarray(high - low)


def intrinsic_robustness(nll: Array) -> Array:
    """1 / median(NLL), in 1 / nats; higher is better."""
    return np.asarray(1 / np.median(nll, axis=-1))


def median(values: Array) -> Array:
    """Over cells; of accuracies the extrinsic robustness."""
    return np.asarray(np.median(values, axis=-1))


def regret_of_random(of_points: Array) -> Array:
    """max - mean over points, of which more is better, (..., point) to (...): what a point at random loses."""
    return np.asarray(of_points.max(-1) - of_points.mean(-1))


def largest_gain(gains: Array) -> Array:
    """max(0, max over points), (..., point) to (...).

    Of what each point is better by than one of them, such as the grid's middle, it is what taking that one loses.
    """
    return np.asarray(np.maximum(gains.max(-1), 0.0))


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {"median": median, "spread": spread, "iqr": inter_quartile_range}
)
"""Those that are bootstrapped, by name."""


@dataclass(frozen=True)
class Robustness:
    """Of one metric of one method over a grid, in the metric's unit.

    Attributes:
        best, median, worst: over all cells.
        spread: between best and worst.
        iqr: between the quartiles.
        regret_of_middle: what taking the grid's middle point loses against its best point, both in the mean over seeds.
        regret_of_random: the same of a point at random, in the mean.
        num_cells: points x seeds.
    """

    best: float
    median: float
    worst: float
    spread: float
    iqr: float
    regret_of_middle: float
    regret_of_random: float
    num_cells: int


def robustness(values: Array, *, higher_is_better: bool, middle: int | None = None) -> Robustness:
    """What the results of a grid say of a method.

    Args:
        values: (point, seed), finite.
        higher_is_better: of the metric.
        middle: index of the point in the grid's middle; None where there is none.

    Raises:
        DataError: no values, values of another shape, or some that are no numbers.

    Example:
        >>> found = robustness(np.array([[0.5], [0.7], [0.6]]), higher_is_better=True, middle=1)
        >>> round(found.spread, 3), round(found.regret_of_middle, 3), round(found.regret_of_random, 3)
        (0.2, 0.0, 0.1)
    """
    values = _checked(values, 2)
    good = values if higher_is_better else -values
    of_points = good.mean(1)
    regrets = of_points.max() - of_points
    return Robustness(
        best=float(values.flat[int(good.argmax())]),
        median=float(np.median(values)),
        worst=float(values.flat[int(good.argmin())]),
        spread=float(spread(values.ravel())),
        iqr=float(inter_quartile_range(values.ravel())),
        regret_of_middle=math.nan if middle is None else float(regrets[middle]),
        regret_of_random=float(regrets.mean()),
        num_cells=values.size,
    )


def signed_rank_p(first: Array, second: Array) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test over cells.

    Cells that share a point or a seed are not independent, so that it is too small rather than too large.

    Args:
        first: of one method, (cell,).
        second: of another in the same cells.

    Raises:
        DataError: no values, not as many of both, or some that are no numbers.

    Example:
        >>> signed_rank_p(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 0.0]))
        0.25
    """
    first, second = _checked(first, 1), _checked(second, 1)
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} cells cannot be paired. Pass those that both methods have.")
    if np.array_equal(first, second):
        return 1.0
    return float(wilcoxon(first, second).pvalue)


def distances_p(first: Array, second: Array) -> float:
    """Whether one method's results lie nearer to each other than another's in the same cells.

    The two-sided p-value of Wilcoxon's signed-rank test of |x - median(x)| against |y - median(y)|, over cells. The
    median takes the mean's place as in the test of Brown and Forsythe (1974, Robust tests for the equality of
    variances), and the pairs that of their independent groups. Of symmetric results it errs as often as it says at
    most; of log-normal ones with sigma = 1, 27 cells, in 8 % at a level of 5 %, since medians are estimated.

    Args:
        first: of one method, (cell,).
        second: of another in the same cells.

    Raises:
        DataError: see `signed_rank_p`.

    Example:
        >>> wide, narrow = np.arange(8.0) ** 2, np.arange(8.0)
        >>> distances_p(wide, narrow) < 0.05
        True
    """
    first, second = _checked(first, 1), _checked(second, 1)
    return signed_rank_p(abs(first - np.median(first)), abs(second - np.median(second)))


def holm(p_values: Array) -> Array:
    """p-values of several comparisons, corrected for their number.

        p'_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Those below a level are false, any of them, with at most that probability, however the tests depend on each other.

    Args:
        p_values: (comparison,); one that is NaN is no comparison, and stays.

    Source: S. Holm 1979, A simple sequentially rejective multiple test procedure.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.06, 0.06]
    """
    found = np.asarray(p_values, dtype=np.float64).copy()
    known = np.flatnonzero(~np.isnan(found))
    order = known[np.argsort(found[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    found[order] = np.minimum(1.0, np.maximum.accumulate(factors * found[order]))
    return found


def interval_over_cells(
    statistic: Statistic,
    values: Array,
    minus: Array | None = None,
    *,
    num_resamples: int = 2_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic over other cells of the kind.

    A spread of resampled cells is never larger than that of the cells themselves: its interval lies low. That of a
    difference between two methods, resampled together, suffers less.

    Args:
        statistic: one of `STATISTICS`, or another.
        values: of a method, (cell,).
        minus: of another in the same cells: the interval is then of the difference of both statistics.
        num_resamples: B.
        seed: of the resamples.
        confidence: of the interval.

    Raises:
        DataError: see `signed_rank_p`.
    """
    values = _checked(values, 1)
    draws = _draws(len(values), num_resamples, seed)
    found = statistic(values[draws])
    if minus is not None:
        other = _checked(minus, 1)
        if len(other) != len(values):
            raise DataError(f"{len(values)} and {len(other)} cells cannot be paired. Pass those that both have.")
        found = found - statistic(other[draws])
    return _percentiles(found, confidence)


def interval_over_rows(
    statistic: Statistic,
    losses: Array,
    minus: Array | None = None,
    *,
    num_resamples: int = 2_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic over other rows, the trained networks of all cells as they are.

    Args:
        statistic: see `interval_over_cells`.
        losses: of each row, such as its NLL, (cell, row): the rows are the same in all cells.
        minus: of another method on the same rows, in as many cells or others.
        num_resamples: B.
        seed: of the resamples.
        confidence: of the interval.

    Raises:
        DataError: no losses, other shapes, or some that are no numbers.
    """
    losses = _checked(losses, 2)
    others = None if minus is None else _checked(minus, 2)
    if others is not None and others.shape[1] != losses.shape[1]:
        raise DataError(f"{losses.shape[1]} and {others.shape[1]} rows are not the same rows. Predict the same ones.")
    num_rows, found = losses.shape[1], []
    # As weights of rows: a product of matrices in place of (resample, cell, row) numbers.
    for draw in np.array_split(_draws(num_rows, num_resamples, seed), max(1, num_resamples // 100)):
        weights = np.stack([np.bincount(rows, minlength=num_rows) for rows in draw]) / num_rows
        of_draw = statistic(weights @ losses.T)
        found.append(of_draw if others is None else of_draw - statistic(weights @ others.T))
    return _percentiles(np.concatenate(found), confidence)


def _draws(count: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    require_count("num_resamples", num_resamples)
    require_seed("seed", seed)
    return np.random.default_rng(seed).integers(count, size=(num_resamples, count))


def _percentiles(found: Array, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _checked(values: Array, dimensions: int) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != dimensions or not values.size or not np.isfinite(values).all():
        raise DataError(
            f"values {values.shape} must be finite numbers of {dimensions} dimension(s), at least one: leave out cells "
            "that failed."
        )
    return values
