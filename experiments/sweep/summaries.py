"""Numbers of a method's grid, and of two methods' in the same cells, with intervals over other cells and other rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayes_lora.experiments.sweep.grids import JUDGED, Layout, MethodGrid, Place
from bayes_lora.metrics.robustness import (
    STATISTICS,
    Statistic,
    interval_over_cells,
    interval_over_rows,
    intrinsic_robustness,
    largest_gain,
    regret_of_random,
)

Array = NDArray[np.float64]
UNKNOWN = (math.nan, math.nan)
"""The interval of what has none."""


@dataclass(frozen=True)
class Summary:
    """A number, with 95 % bootstrap intervals; NaN where there is none.

    Attributes:
        statistic: its name.
        value: of one method, or of one minus that of another.
        low_cells, high_cells: over other cells; of a regret over other points of the grid.
        low_rows, high_rows: over other evaluated rows, the trained networks as they are.
    """

    statistic: str
    value: float
    low_cells: float
    high_cells: float
    low_rows: float
    high_rows: float


@dataclass(frozen=True)
class Side:
    """The results of one method at some places.

    Attributes:
        values: (cell,).
        losses: (cell, row), or None.
    """

    values: Array
    losses: Array | None


def metrics_of(*grids: MethodGrid) -> list[str]:
    """Those that all have in every cell."""
    return [metric for metric in JUDGED if all(grid.has(metric) for grid in grids)]


def sides_of(grid: MethodGrid, places: Sequence[Place]) -> dict[str, Side]:
    """By metric; predictions are read once."""
    losses = grid.losses(places) or {}
    return {metric: Side(grid.values(metric, places), losses.get(metric)) for metric in metrics_of(grid)}


def summaries(metric: str, layout: Layout, side: Side, minus: Side | None = None) -> Iterator[Summary]:
    """Every statistic of a metric.

    Args:
        metric: of both.
        layout: of their cells.
        side: of a method.
        minus: of another in the same cells: each number is then the difference.
    """
    of_cells = {**STATISTICS, **({"intrinsic": intrinsic_robustness} if metric == "nll" else {})}
    for name, statistic in of_cells.items():
        yield _summary(name, statistic, _all_cells, side, minus)
    if layout.cells.size:
        if layout.middle is not None:
            yield _summary("regret_of_middle", largest_gain, layout.gains, side, minus)
        yield _summary("regret_of_random", regret_of_random, layout.of_points, side, minus)


def _all_cells(values: Array) -> Array:
    return values


def _summary(name: str, statistic: Statistic, seen_as: Statistic, side: Side, minus: Side | None) -> Summary:
    """`statistic` of `seen_as` of the cells' values; resampled are the cells, or what they are seen as."""

    def of_values(values: Array) -> Array:
        return statistic(seen_as(values))

    value = float(of_values(side.values))
    other = None
    if minus is not None:
        value -= float(of_values(minus.values))
        other = seen_as(minus.values)
    rows = UNKNOWN
    if side.losses is not None and minus is None:
        rows = interval_over_rows(of_values, side.losses)
    elif side.losses is not None and minus is not None and minus.losses is not None:
        rows = interval_over_rows(of_values, side.losses, minus.losses)
    return Summary(name, value, *interval_over_cells(statistic, seen_as(side.values), other), *rows)
