"""Tables of a finished sweep: how much each method's results move, and whether that is less than another's."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bayes_lora.errors import DataError
from bayes_lora.experiments.sweep.grids import HIGHER_IS_BETTER, JUDGED, MethodGrid, Place, grids_of, shared_places
from bayes_lora.experiments.sweep.published import Published
from bayes_lora.experiments.sweep.results import Finished
from bayes_lora.files import write_file
from bayes_lora.metrics.robustness import (
    STATISTICS,
    interval_over_cells,
    interval_over_rows,
    intrinsic_robustness,
    robustness,
    signed_rank_p,
)

ROBUSTNESS_FILE, DIFFERENCES_FILE, MARKDOWN_FILE = "robustness.csv", "differences.csv", "robustness.md"
_SHOWN = ("median", "spread", "iqr", "best", "worst", "regret_of_middle", "regret_of_random")
_NAN = (math.nan, math.nan)


@dataclass(frozen=True)
class Line:
    """A statistic of one method, with 95 % intervals over other cells and over other rows; NaN where there is none."""

    task: str
    method: str
    metric: str
    statistic: str
    value: float
    low_cells: float
    high_cells: float
    low_rows: float
    high_rows: float
    cells: int
    failed: int
    published: float


@dataclass(frozen=True)
class DifferenceLine:
    """A statistic of one method minus that of another in the same cells; `p_value` is the signed-rank test's."""

    task: str
    method: str
    minus: str
    metric: str
    statistic: str
    difference: float
    low_cells: float
    high_cells: float
    low_rows: float
    high_rows: float
    cells: int
    p_value: float


def lines_of(finished: Finished, published: Published | None = None) -> list[Line]:
    """Every statistic of every method."""
    found = []
    for grids in grids_of(finished).values():
        for grid in grids.values():
            losses = grid.losses(list(grid.by_place)) or {}
            for metric in filter(grid.has, JUDGED):
                found += _lines(grid, metric, losses.get(metric), published)
    return found


def _lines(
    grid: MethodGrid, metric: str, losses: NDArray[np.float64] | None, published: Published | None
) -> list[Line]:
    values, (by_point, middle) = grid.values(metric), grid.by_point(metric)
    told = asdict(robustness(by_point, higher_is_better=HIGHER_IS_BETTER[metric], middle=middle))
    numbers = {name: told[name] for name in _SHOWN}
    numbers |= {name: float(statistic(values)) for name, statistic in STATISTICS.items()}  # of every cell there is
    if metric == "nll":
        numbers["intrinsic"] = float(intrinsic_robustness(values))
    found = []
    for name, value in numbers.items():
        statistic = intrinsic_robustness if name == "intrinsic" else STATISTICS.get(name)
        cells = rows = _NAN
        if statistic is not None:
            cells = interval_over_cells(statistic, values)
            rows = _NAN if losses is None else interval_over_rows(statistic, losses)
        printed = math.nan
        if published is not None:
            printed = published.values.get((grid.task, grid.method, f"{metric} {name}"), math.nan)
        found.append(
            Line(grid.task, grid.method, metric, name, value, *cells, *rows, len(values), grid.num_failed, printed)
        )
    return found


def differences_of(finished: Finished, references: Sequence[str]) -> list[DifferenceLine]:
    """Of each method to each reference, in the cells that both have.

    Raises:
        DataError: a reference is none of the methods.
    """
    found = []
    for task, grids in grids_of(finished).items():
        for reference in references:
            if reference not in grids:
                raise DataError(f"--reference {reference!r} is none of the methods, {', '.join(grids)}.")
            for grid in grids.values():
                places = shared_places(grid, grids[reference])
                if grid.method != reference and places:
                    found += _differences(task, grid, grids[reference], places)
    return found


def _differences(task: str, grid: MethodGrid, other: MethodGrid, places: Sequence[Place]) -> list[DifferenceLine]:
    ours, theirs = grid.losses(places), other.losses(places)
    found = []
    for metric in (metric for metric in JUDGED if grid.has(metric) and other.has(metric)):
        first, second = grid.values(metric, places), other.values(metric, places)
        for name, statistic in STATISTICS.items():
            rows = _NAN
            if ours is not None and theirs is not None and metric in ours:
                rows = interval_over_rows(statistic, ours[metric], theirs[metric])
            found.append(
                DifferenceLine(
                    *(task, grid.method, other.method, metric, name),
                    float(statistic(first) - statistic(second)),
                    *interval_over_cells(statistic, first, second),
                    *rows,
                    len(places),
                    signed_rank_p(first, second),
                )
            )
    return found


def markdown(lines: Sequence[Line], differences: Sequence[DifferenceLine], published: Published | None) -> str:
    """A table for each task and metric, and one of the differences."""
    text = []
    for task, metric in dict.fromkeys((line.task, line.metric) for line in lines):
        own = [line for line in lines if (line.task, line.metric) == (task, metric)]
        names = list(dict.fromkeys(line.statistic for line in own))
        text += [
            "",
            f"## {task}: {metric}",
            "",
            f"| method | cells | {' | '.join(names)} |",
            "|---" * (2 + len(names)) + "|",
        ]
        for method in dict.fromkeys(line.method for line in own):
            of = {line.statistic: line for line in own if line.method == method}
            first = of[names[0]]
            cells = f"{first.cells}" + (f", {first.failed} failed" if first.failed else "")
            text.append(f"| {method} | {cells} | " + " | ".join(_cell(of[name]) for name in names) + " |")
    if differences:
        text += [
            "",
            "## Differences",
            "",
            "In the same cells; p is Wilcoxon's signed-rank test of the metric over cells.",
            "",
        ]
        text += [
            "| task | method | minus | metric | statistic | difference | over cells | over rows | p |",
            "|---" * 9 + "|",
        ]
        text += [
            f"| {d.task} | {d.method} | {d.minus} | {d.metric} | {d.statistic} | {d.difference:+.3f} | "
            f"{_interval(d.low_cells, d.high_cells)} | {_interval(d.low_rows, d.high_rows)} | {d.p_value:.3g} |"
            for d in differences
        ]
    if published is not None:
        text += ["", f"In parentheses, published: {published.source}."]
        text += [f"- It does not add up: {fault}." for fault in published.faults()]
    notes = (
        "Brackets: 95 % bootstrap intervals over cells. Cells that failed are counted, and are in no number. The "
        "interval of a spread lies low, since no resample has a larger one."
    )
    return "\n".join([notes, *text]) + "\n"


def _cell(line: Line) -> str:
    interval = "" if math.isnan(line.low_cells) else f" {_interval(line.low_cells, line.high_cells)}"
    printed = "" if math.isnan(line.published) else f" ({line.published:g})"
    return f"{line.value:.3f}{interval}{printed}"


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{low:.3f}, {high:.3f}]"


def write_tables(
    finished: Finished, references: Sequence[str] = (), published: Published | None = None
) -> tuple[list[Line], list[DifferenceLine]]:
    """Write `robustness.csv`, `differences.csv` and `robustness.md` into the sweep's folder.

    Args:
        finished: the sweep.
        references: methods that the others are compared with; the first of the recipe where none is named.
        published: numbers to stand beside.

    Raises:
        DataError: a reference is none of the methods.
    """
    lines = lines_of(finished, published)
    if not lines:
        raise DataError(f"{finished.folder} has no result with one of {', '.join(JUDGED)}: nothing to sum up.")
    differences = differences_of(finished, references or [lines[0].method])
    write_file(finished.folder / ROBUSTNESS_FILE, _csv(lines))
    if differences:
        write_file(finished.folder / DIFFERENCES_FILE, _csv(differences))
    write_file(finished.folder / MARKDOWN_FILE, markdown(lines, differences, published).encode())
    return lines, differences


def _csv(lines: Sequence[Line] | Sequence[DifferenceLine]) -> bytes:
    text, rows = io.StringIO(), [asdict(line) for line in lines]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def tables_in(folder: Path) -> list[Path]:
    """The files that are there."""
    return [folder / name for name in (ROBUSTNESS_FILE, DIFFERENCES_FILE, MARKDOWN_FILE) if (folder / name).is_file()]
