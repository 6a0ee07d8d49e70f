"""Tables of a finished sweep: how much each method's results move, and whether that is less than another's."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bayes_lora.errors import DataError
from bayes_lora.experiments.sweep.differences import Difference, default_references, differences_of, moves
from bayes_lora.experiments.sweep.grids import HIGHER_IS_BETTER, JUDGED, MethodGrid, grids_of
from bayes_lora.experiments.sweep.published import Published
from bayes_lora.experiments.sweep.results import Finished
from bayes_lora.experiments.sweep.summaries import UNKNOWN, Side, Summary, metrics_of, sides_of, summaries
from bayes_lora.files import write_file
from bayes_lora.metrics.robustness import robustness

ROBUSTNESS_FILE, DIFFERENCES_FILE, MARKDOWN_FILE = "robustness.csv", "differences.csv", "robustness.md"

_NAMES = {
    ("accuracy", "median"): "median (extrinsic robustness)",
    ("nll", "intrinsic"): "1 / median (intrinsic robustness)",
    ("", "iqr"): "inter-quartile range",
    ("", "regret_of_middle"): "regret of the middle",
    ("", "regret_of_random"): "regret of a random point",
}
NOTES = (
    "Below a number: 95 % bootstrap intervals over cells (of a regret: over points of the grid), then over evaluated "
    "rows, the trained networks as they are. That of a spread or a regret lies low, since no resample has a better "
    "best. Cells that failed are counted, and are in no number.",
    "Differences are in the same cells. p is Wilcoxon's signed-rank test over cells, of the metric itself and of its "
    "distance from the method's median, each corrected by Holm for the number of comparisons in its table; results "
    "move less or more where the second is below .05. Cells that share a point or a seed are not independent, so that "
    "p is too small.",
)


@dataclass(frozen=True)
class Line:
    """A statistic of one method on one task, and what was published of it; NaN where there is none."""

    task: str
    method: str
    metric: str
    summary: Summary
    cells: int
    failed: int
    published: float


@dataclass(frozen=True)
class Shown:
    """A table for people.

    Attributes:
        title: of it.
        columns: their names; the first is of methods.
        rows: of cells, each of one line or of several below one another.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]

    def markdown(self) -> list[str]:
        """Its lines."""
        rows = [[" ".join(cell) for cell in row] for row in self.rows]
        lines = [list(self.columns), ["---"] * len(self.columns), *rows]
        return [f"## {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""]


def lines_of(finished: Finished, published: Published | None = None) -> list[Line]:
    """Every statistic of every method."""
    found = []
    for grids in grids_of(finished).values():
        for grid in grids.values():
            sides = sides_of(grid, list(grid.by_place))
            for metric in metrics_of(grid):
                for summary in _of_one(grid, metric, sides[metric]):
                    key = (grid.task, grid.method, f"{metric} {summary.statistic}")
                    printed = math.nan if published is None else published.values.get(key, math.nan)
                    cells = len(grid.by_place)
                    found.append(Line(grid.task, grid.method, metric, summary, cells, grid.num_failed, printed))
    return found


def _of_one(grid: MethodGrid, metric: str, side: Side) -> Iterator[Summary]:
    ends = robustness(side.values[:, None], higher_is_better=HIGHER_IS_BETTER[metric])
    yield Summary("best", ends.best, *UNKNOWN, *UNKNOWN)
    yield Summary("worst", ends.worst, *UNKNOWN, *UNKNOWN)
    yield from summaries(metric, grid.layout(metric), side)


def tables_of(lines: Sequence[Line], differences: Sequence[Difference]) -> list[Shown]:
    """For each task and metric how much results move, and how methods differ in that."""
    found = []
    for task, metric in dict.fromkeys((line.task, line.metric) for line in lines):
        own = [line for line in lines if (line.task, line.metric) == (task, metric)]
        found.append(_robustness(f"{task}: {metric} over cells", metric, own))
        pairs = [of for of in differences if (of.task, of.metric) == (task, metric)]
        if pairs:
            found.append(_contrasts(f"{task}: {metric}, differences", metric, pairs))
    return found


def _robustness(title: str, metric: str, lines: Sequence[Line]) -> Shown:
    names, rows = list(dict.fromkeys(line.summary.statistic for line in lines)), []
    for method in dict.fromkeys(line.method for line in lines):
        of = {line.summary.statistic: line for line in lines if line.method == method}
        first = of[names[0]]
        cells = f"{first.cells}" + (f", {first.failed} failed" if first.failed else "")
        rows.append(((method,), (cells,), *(_cell(of.get(name)) for name in names)))
    return Shown(title, ("method", "cells", *(_title(metric, name) for name in names)), tuple(rows))


def _contrasts(title: str, metric: str, differences: Sequence[Difference]) -> Shown:
    names, rows = list(dict.fromkeys(of.summary.statistic for of in differences)), []
    for method, minus in dict.fromkeys((of.method, of.minus) for of in differences):
        pair = [of for of in differences if (of.method, of.minus) == (method, minus)]
        of_name = {of.summary.statistic: of for of in pair}
        tested = (f"{of_name[name].p_corrected:.2g}" for name in ("median", "iqr"))
        numbers = (_estimate(of_name[name].summary, "+.3f") if name in of_name else ("",) for name in names)
        rows.append(((method,), (minus,), (str(pair[0].cells),), *numbers, *((p,) for p in tested), (moves(pair),)))
    columns = ("method", "minus", "cells", *(_title(metric, name) for name in names))
    return Shown(title, (*columns, f"p of {metric}", "p of distances", "moves"), tuple(rows))


def _title(metric: str, statistic: str) -> str:
    return _NAMES.get((metric, statistic)) or _NAMES.get(("", statistic)) or statistic


def _cell(line: Line | None) -> tuple[str, ...]:
    if line is None:
        return ("",)
    value, *intervals = _estimate(line.summary, ".3f")
    printed = "" if math.isnan(line.published) else f" ({line.published:g})"
    return (f"{value}{printed}", *intervals)


def _estimate(summary: Summary, form: str) -> tuple[str, ...]:
    both = ((summary.low_cells, summary.high_cells), (summary.low_rows, summary.high_rows))
    return (f"{summary.value:{form}}", *(f"[{low:{form}}, {high:{form}}]" for low, high in both if not math.isnan(low)))


def markdown(lines: Sequence[Line], differences: Sequence[Difference], published: Published | None) -> str:
    """All tables, and what their numbers are."""
    text = [NOTES[0], "", *([NOTES[1], ""] if differences else [])]
    for table in tables_of(lines, differences):
        text += table.markdown()
    if published is not None:
        text += [f"In parentheses, published: {published.source}."]
        text += [f"- It does not add up: {fault}." for fault in published.faults()]
    return "\n".join(text).rstrip("\n") + "\n"


def write_tables(
    finished: Finished, references: Sequence[str] = (), published: Published | None = None
) -> tuple[list[Line], list[Difference]]:
    """Write `robustness.csv`, `differences.csv` and `robustness.md` into the sweep's folder.

    Args:
        finished: the sweep.
        references: methods that the others are compared with; see `default_references` where none is named.
        published: numbers to stand beside.

    Raises:
        DataError: a reference is none of the methods.
    """
    lines = lines_of(finished, published)
    if not lines:
        raise DataError(f"{finished.folder} has no result with one of {', '.join(JUDGED)}: nothing to sum up.")
    names = list(dict.fromkeys(line.method for line in lines))
    differences = differences_of(finished, references or default_references(names))
    write_file(finished.folder / ROBUSTNESS_FILE, _csv(lines))
    if differences:
        write_file(finished.folder / DIFFERENCES_FILE, _csv(differences))
    write_file(finished.folder / MARKDOWN_FILE, markdown(lines, differences, published).encode())
    return lines, differences


def flat(line: Line | Difference) -> dict[str, object]:
    """Its numbers by name."""
    told = asdict(line)
    told |= told.pop("summary")
    return {name: None if value != value else value for name, value in told.items()}


def _csv(lines: Sequence[Line] | Sequence[Difference]) -> bytes:
    text, rows = io.StringIO(), [flat(line) for line in lines]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def tables_in(folder: Path) -> list[Path]:
    """The files that are there."""
    return [folder / name for name in (ROBUSTNESS_FILE, DIFFERENCES_FILE, MARKDOWN_FILE) if (folder / name).is_file()]
