"""Tables and figures of a finished sweep, and its files."""

import csv
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from bayes_lora.errors import DataError
from bayes_lora.experiments.sweep.grids import grids_of, middle_value
from bayes_lora.experiments.sweep.published import read_published
from bayes_lora.experiments.sweep.results import read_results
from bayes_lora.experiments.sweep.status import read_status
from bayes_lora.experiments.sweep.tables import differences_of, lines_of
from tests.experiments.commands import run


def test_results_are_one_row_for_each_method_point_and_seed(finished: Path) -> None:
    found = read_results(finished)
    assert Counter(row.method for row in found.rows) == {
        **dict.fromkeys(("map", "base_rate"), 3 * 2),
        **dict.fromkeys(("monteclora", "monteclora+mean"), 3 * 2 * 2),
    }
    assert len({(row.method, row.place) for row in found.rows}) == len(found.rows)
    by_place = {(row.method, *row.place): row for row in found.rows}
    point = (("learning_rate", 0.01), ("monteclora.sample_scale", 0.1))
    assert by_place["monteclora", point, 1].metrics["nll"] != by_place["monteclora+mean", point, 1].metrics["nll"]
    table = pyarrow.parquet.read_table(finished / "results.parquet")
    assert table.num_rows == len(found.rows)
    assert table["nll"].to_pylist() == pytest.approx([row.metrics["nll"] for row in found.rows])
    # What was trained is gone, but for how its loss fell.
    kept = {path.name for path in finished.rglob("cells/**/trained/**/*") if path.is_file()}
    assert kept == {"history.json"}


def test_lines_are_those_of_the_results(finished: Path) -> None:
    rows = [row for row in read_results(finished).rows if row.method == "map"]
    nll = np.array([row.metrics["nll"] for row in rows])
    lines = {(line.method, line.metric, line.statistic): line for line in lines_of(read_results(finished))}
    spread = lines["map", "nll", "spread"]
    assert spread.value == pytest.approx(nll.max() - nll.min())
    assert spread.high_cells <= spread.value + 1e-12  # of no resample it is larger
    assert spread.low_rows <= spread.value <= spread.high_rows
    assert lines["map", "nll", "intrinsic"].value == pytest.approx(1 / np.median(nll))
    of_points = {
        rate: np.mean([row.metrics["nll"] for row in rows if row.point["learning_rate"] == rate])
        for rate in (1e-3, 1e-2, 1e-1)
    }
    regret = lines["map", "nll", "regret_of_middle"].value
    assert regret == pytest.approx(of_points[1e-2] - min(of_points.values()), abs=1e-12)
    assert spread.cells == 6


def test_differences_are_over_the_cells_that_both_have(finished: Path) -> None:
    found = differences_of(read_results(finished), ["map", "monteclora+mean"])
    pairs = {(line.method, line.minus): line.cells for line in found}
    # Along an axis of its own a method has no cell in common with one that has none.
    assert pairs == {("base_rate", "map"): 6, ("monteclora", "monteclora+mean"): 12}
    with pytest.raises(DataError, match="--reference 'nobody' is none of the methods, map,"):
        differences_of(read_results(finished), ["nobody"])


def test_row_intervals_need_the_predictions(finished: Path, tmp_path: Path) -> None:
    for name in ("study.json", "results.csv"):
        shutil.copy(finished / name, tmp_path / name)
    (line, *_) = lines_of(read_results(tmp_path))
    assert math.isnan(line.low_rows)
    assert math.isfinite(line.low_cells)
    with pytest.raises(DataError, match="holds no results of a sweep"):
        read_results(tmp_path / "absent")


def test_the_middle_of_an_axis() -> None:
    assert middle_value([3e-4, 5e-5, 1e-5]) == 5e-5
    assert middle_value([64, 8, 16, 32]) == 16
    assert middle_value(["constant", "linear", "cosine"]) == "linear"


def test_published_numbers_that_do_not_add_up(tmp_path: Path) -> None:
    # Invented, to be checked.
    values = [("one", 0.2), ("two", 0.4), ("average", 0.3)]
    entries = [{"task": task, "method": "map", "statistic": "nll spread", "value": value} for task, value in values]
    path = tmp_path / "published.json"
    path.write_text(json.dumps({"source": "nowhere", "values": entries}))
    assert read_published(path).faults() == []
    entries[-1]["value"] = 0.35
    path.write_text(json.dumps({"source": "nowhere", "values": entries}))
    (fault,) = read_published(path).faults()
    assert fault == "map, nll spread: 0.35 is printed, its 2 cells give 0.3"
    path.write_text(json.dumps({"values": entries}))
    with pytest.raises(DataError, match="holds no published numbers"):
        read_published(path)


def test_the_command_lines(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "published.json"
    entry = {"task": "mrpc", "method": "map", "statistic": "nll spread", "value": 0.125}
    path.write_text(json.dumps({"source": "nowhere", "values": [entry]}))
    told = json.loads(run("tables", finished, "--published", path, "--reference", "map", "--json").stdout)
    assert {line["statistic"] for line in told["robustness"] if line["published"] == 0.125} == {"spread"}
    assert "(0.125)" in (finished / "robustness.md").read_text()
    with (finished / "robustness.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(told["robustness"])
    assert "robustness.md" in run("tables", finished).stdout
    assert "distribution-mrpc.png" in run("figures", finished).stdout
    drawn = {path.name for path in finished.glob("*.png")}
    assert drawn == {
        *("distribution-mrpc.png", "loss-mrpc.png"),
        *("along-learning_rate-mrpc.png", "along-monteclora.sample_scale-mrpc.png"),
    }
    assert json.loads(run("sweep", "--status", finished, "--json").stdout) == {
        "cells": {"mrpc": {"done": 18}},
        "failed": {},
    }
    assert read_status(finished).left == 0
    assert list(grids_of(read_results(finished))["mrpc"]) == [
        "map",
        "base_rate",
        "monteclora",
        "monteclora+mean",
    ]
