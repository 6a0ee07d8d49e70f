"""The results of a sweep: a row for each task, method, point and seed, from the storage into files, and back."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.compare.report import RESULTS_FILE
from bayes_lora.experiments.sweep.cells import Cell
from bayes_lora.experiments.sweep.queue import FAILED, REPORT, WORKER, Queue
from bayes_lora.experiments.sweep.recipe import Recipe
from bayes_lora.files import read_json, write_file

PARQUET_FILE, SWEEP_FILE = "results.parquet", "study.json"
_TEXTS = ("task", "method")
_ABOUT = ("cell", "seconds", "worker", "failed")


@dataclass(frozen=True)
class Row:
    """A result.

    Attributes:
        task, method: as the recipe has them.
        point: values by axis; only the axes that the method moves along.
        seed: of the recipe.
        metrics: those of `compare`; empty where it failed.
        about: the cell's id, seconds and worker, and what failed.
    """

    task: str
    method: str
    point: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, float]
    about: Mapping[str, Any]

    @property
    def place(self) -> tuple[tuple[tuple[str, Any], ...], int]:
        """Of its point and seed: methods are compared where they have the same."""
        return tuple(self.point.items()), self.seed


def rows_in(queue: Queue) -> list[Row]:
    """What has been done, each result once, in the order of the recipe's cells."""
    trials, found = queue.by_cell(), []
    for id, cell in queue.cells.items():
        trial = trials.get(id)
        if trial is not None and REPORT in trial.user_attrs:
            found += list(_rows_of(cell, trial.user_attrs))
    return found


def _rows_of(cell: Cell, told: Mapping[str, Any]) -> Iterator[Row]:
    report, failed = told[REPORT], told.get(FAILED, {})
    for entry in cell.entries:
        scored = report["scores"].get(entry.method.label)
        why = failed.get(entry.method.label, "")
        if scored is None and not why:
            continue
        metrics = {name: math.nan if number is None else number for name, number in (scored or {}).items()}
        about = {"cell": cell.id, "seconds": report["seconds"], "worker": told.get(WORKER, ""), "failed": why}
        yield Row(cell.task.name, entry.written.label, dict(entry.point), cell.seed, metrics, about)


def write_results(folder: Path, recipe: Recipe, rows: Sequence[Row]) -> None:
    """Write `results.csv` and `results.parquet`: task, method, axes, seed, metrics, and what became of the cell."""
    import pyarrow
    import pyarrow.parquet

    if not rows:
        return
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns = [*_TEXTS, *recipe.grid, "seed", *metrics, *_ABOUT]
    lines = [
        {**dict.fromkeys(columns), "task": row.task, "method": row.method, "seed": row.seed}
        | dict(row.point)
        | dict(row.metrics)
        | dict(row.about)
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_file(folder / RESULTS_FILE, text.getvalue().encode())
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({name: _column([line[name] for line in lines]) for name in columns}), buffer
    )
    write_file(folder / PARQUET_FILE, buffer.getvalue())


def _column(values: Sequence[Any]) -> list[Any]:
    """Of one type: numbers where all are, text where some are not."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known) or not any(isinstance(value, str | bool) for value in known):
        return list(values)
    return [None if value is None else str(value) for value in values]


@dataclass(frozen=True)
class Finished:
    """A sweep's folder as it is read again: its results, and what it was."""

    folder: Path
    about: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """Of the grid."""
        return tuple(self.about["grid"])


def read_results(folder: Path) -> Finished:
    """The results in a sweep's folder.

    Raises:
        DataError: there are none, or they are damaged.
    """
    try:
        about = read_json(folder / SWEEP_FILE)
        with (folder / RESULTS_FILE).open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        axes = about["grid"]
        rows = tuple(_row(line, axes) for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} holds no results of a sweep ({type(error).__name__}: {error}). Give the --out of one that has "
            f"done a cell, or a folder with its {SWEEP_FILE} and {RESULTS_FILE}."
        ) from error
    return Finished(folder, about, rows)


def _row(line: Mapping[str, str], axes: Mapping[str, Sequence[Any]]) -> Row:
    point = {axis: _value(line[axis], values) for axis, values in axes.items() if line[axis] != "" or None in values}
    known = {*_TEXTS, *axes, "seed", *_ABOUT}
    metrics = {name: float(text) for name, text in line.items() if name not in known and text != ""}
    about = {name: line[name] for name in _ABOUT}
    return Row(line["task"], line["method"], point, int(line["seed"]), metrics, about)


def _value(text: str, values: Sequence[Any]) -> Any:
    """The value of an axis that is written so."""
    return next(value for value in values if text == ("" if value is None else str(value)))
