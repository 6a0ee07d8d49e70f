"""What a finished sweep has of a method: results by point and seed, the grid's middle, the losses of each row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_lora.errors import DataError
from bayes_lora.experiments.compare.columns import COLUMNS
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.running import EVALUATED, Results
from bayes_lora.experiments.sweep.results import Finished, Row
from bayes_lora.experiments.sweep.settings import at_point
from bayes_lora.experiments.sweep.working import CELLS

JUDGED = ("accuracy", "nll", "rmse", "crps", "macro_f1", "entity_f1", "perplexity")
"""The metrics of tables and figures, as far as results have them."""

HIGHER_IS_BETTER: Mapping[str, bool] = {
    column.metric: bool(column.higher_is_better) for column in COLUMNS if column.metric in JUDGED
}

Place = tuple[tuple[tuple[str, Any], ...], int]


@dataclass(frozen=True)
class Layout:
    """Cells as points and seeds.

    Attributes:
        cells: (point, seed), indices of cells.
        middle: index of the grid's middle among the points; None where it is not there.
        higher_is_better: of the metric.
    """

    cells: NDArray[np.int64]
    middle: int | None
    higher_is_better: bool

    def of_points(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., cell) to (..., point), the mean over seeds, of which more is better."""
        return np.asarray((1 if self.higher_is_better else -1) * values[..., self.cells].mean(-1))

    def gains(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., cell) to (..., point): by how much each point is better than the middle, which there must be."""
        of_points = self.of_points(values)
        return np.asarray(of_points - of_points[..., self.middle, None])


@dataclass(frozen=True)
class MethodGrid:
    """The results of one method on one task.

    Attributes:
        finished: the sweep.
        task, method: as the recipe has them.
        rows: its results, those that failed too.
    """

    finished: Finished
    task: str
    method: str
    rows: tuple[Row, ...]

    @cached_property
    def by_place(self) -> dict[Place, Row]:
        """Of those that did not fail, by point and seed."""
        return {row.place: row for row in self.rows if row.metrics}

    @property
    def num_failed(self) -> int:
        """Results that are none."""
        return sum(not row.metrics for row in self.rows)

    def has(self, metric: str) -> bool:
        """Whether every result has this metric, as a number."""
        rows = self.by_place.values()
        return bool(rows) and all(np.isfinite(row.metrics.get(metric, np.nan)) for row in rows)

    def values(self, metric: str, places: Sequence[Place] | None = None) -> NDArray[np.float64]:
        """(cell,), of all cells or those at some places."""
        return np.array([self.by_place[place].metrics[metric] for place in places or self.by_place])

    def layout(self, metric: str, places: Sequence[Place] | None = None) -> "Layout":
        """Which of some cells, or of all, are of which point; of the points that have every seed."""
        places = list(places or self.by_place)
        index = {place: number for number, place in enumerate(places)}
        seeds = sorted({seed for _, seed in places})
        points = [
            point
            for point in dict.fromkeys(point for point, _ in places)
            if all((point, seed) in index for seed in seeds)
        ]
        cells = [[index[point, seed] for seed in seeds] for point in points]
        middle = [number for number, point in enumerate(points) if self._is_middle(dict(point))]
        return Layout(
            np.array(cells, dtype=np.int64).reshape(len(points), len(seeds)),
            middle[0] if middle else None,
            higher_is_better=HIGHER_IS_BETTER[metric],
        )

    def losses(self, places: Sequence[Place]) -> dict[str, NDArray[np.float64]] | None:
        """(cell, row) of each metric that is a mean over rows; None where
        predictions are not on this machine, or cells differ in their rows."""
        found: dict[str, list[NDArray[np.float64]]] = {}
        for place in places:
            row = self.by_place[place]
            method = at_point(parse_methods(row.method)[0], row.point)
            folder = self.finished.folder / CELLS / row.about["cell"]
            try:
                stored = Results(folder, (method,), (row.seed,), ()).read(method, row.seed, EVALUATED)
            except DataError:
                return None
            for metric, of_rows in stored.likelihood.losses(stored.prediction).items():
                found.setdefault(metric, []).append(of_rows.double().numpy())
        if any(len(of_rows) != len(of_cells[0]) for of_cells in found.values() for of_rows in of_cells):
            return None  # along this grid evaluated rows differ
        return {metric: np.stack(of_cells) for metric, of_cells in found.items()}

    def _is_middle(self, point: Mapping[str, Any]) -> bool:
        return all(value == middle_value(self.finished.about["grid"][axis]) for axis, value in point.items())


def middle_value(values: Sequence[Any]) -> Any:
    """Of an axis: of numbers the lower median, of words the one in the middle as they are listed."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return (sorted(values) if numbers else list(values))[(len(values) - 1) // 2]


def grids_of(finished: Finished) -> dict[str, dict[str, MethodGrid]]:
    """By task and method, in the recipe's order."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in finished.rows:
        found.setdefault(row.task, {}).setdefault(row.method, []).append(row)
    place = {method: index for index, method in enumerate(finished.about.get("methods", ()))}
    return {
        task: {
            method: MethodGrid(finished, task, method, tuple(rows))
            for method, rows in sorted(of_methods.items(), key=lambda pair: place.get(pair[0], len(place)))
        }
        for task, of_methods in found.items()
    }


def shared_places(one: MethodGrid, other: MethodGrid) -> list[Place]:
    """Where both have results: points and seeds. None where one has an axis that the other has not."""
    return [place for place in one.by_place if place in other.by_place]
