"""Is one method of a sweep better than another, and do its results move less?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bayes_lora.errors import DataError
from bayes_lora.experiments.compare.fitting import POINT
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.sweep.grids import MethodGrid, grids_of, shared_places
from bayes_lora.experiments.sweep.results import Finished
from bayes_lora.experiments.sweep.summaries import Summary, metrics_of, sides_of, summaries
from bayes_lora.metrics.robustness import distances_p, holm, signed_rank_p

_LEVEL = 0.05
# What says whether results are better, and whether they move less, and the test that goes with each.
_TESTS = {"median": signed_rank_p, "iqr": distances_p}


@dataclass(frozen=True)
class Difference:
    """A statistic of one method minus that of another in the same cells.

    Attributes:
        task, method, minus, metric: of which, from which.
        summary: the difference, with its intervals.
        cells: that both have.
        p_value: of "median", of Wilcoxon's signed-rank test of the metric; of "iqr", of the same test of distances from
            the median, see `distances_p`; NaN of others.
        p_corrected: by `holm`, for the number of comparisons of a task, metric and statistic.
    """

    task: str
    method: str
    minus: str
    metric: str
    summary: Summary
    cells: int
    p_value: float
    p_corrected: float = math.nan

    @property
    def told(self) -> bool:
        """Whether the two are told apart."""
        return self.p_corrected < _LEVEL


def moves(of: Sequence[Difference]) -> str:
    """Whether a method's results move less than another's: by the distances from the median.

    Args:
        of: all differences of a task, method, reference and metric.
    """
    found = next(difference for difference in of if difference.summary.statistic == "iqr")
    if not found.told:
        return "not told apart"
    return "less" if found.summary.value < 0 else "more"


def default_references(methods: Sequence[str]) -> list[str]:
    """LoRA, and LoRA under other options such as a weight decay; the first method where there is neither."""
    found = [label for label in methods if _is_lora(label)]
    return found or list(methods[:1])


def _is_lora(label: str) -> bool:
    (method,) = parse_methods(label)
    return method.name in (POINT, "lora") and not method.tempered and not method.told_by


def differences_of(finished: Finished, references: Sequence[str]) -> list[Difference]:
    """Of each method to each reference, in the cells that both have.

    Raises:
        DataError: a reference is none of the methods.
    """
    found: list[Difference] = []
    for task, grids in grids_of(finished).items():
        for number, reference in enumerate(references):
            if reference not in grids:
                raise DataError(f"--reference {reference!r} is none of the methods, {', '.join(grids)}.")
            seen = references[: number + 1]  # one reference is compared with another once
            for grid in grids.values():
                if grid.method not in seen:
                    found += _differences(task, grid, grids[reference])
    return _corrected(found)


def _differences(task: str, grid: MethodGrid, other: MethodGrid) -> list[Difference]:
    places = shared_places(grid, other)
    if not places:
        return []
    ours, theirs = sides_of(grid, places), sides_of(other, places)
    found = []
    for metric in metrics_of(grid, other):
        one, minus = ours[metric], theirs[metric]
        for summary in summaries(metric, grid.layout(metric, places), one, minus):
            test = _TESTS.get(summary.statistic)
            p_value = math.nan if test is None else test(one.values, minus.values)
            found.append(Difference(task, grid.method, other.method, metric, summary, len(places), p_value))
    return found


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    families: dict[tuple[str, str, str], list[int]] = {}
    for number, difference in enumerate(found):
        family = (difference.task, difference.metric, difference.summary.statistic)
        families.setdefault(family, []).append(number)
    corrected = np.full(len(found), math.nan)
    for numbers in families.values():
        corrected[numbers] = holm(np.array([found[number].p_value for number in numbers]))
    return [replace(difference, p_corrected=float(p)) for difference, p in zip(found, corrected, strict=True)]
