"""Tables and figures of a finished sweep, and its files."""

import csv
import json
import math
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from bayes_lora.errors import DataError
from bayes_lora.experiments.sweep.differences import Difference, default_references, differences_of, moves
from bayes_lora.experiments.sweep.figures import loss_curves
from bayes_lora.experiments.sweep.grids import grids_of, middle_value
from bayes_lora.experiments.sweep.published import read_published
from bayes_lora.experiments.sweep.results import Finished, Row, read_results
from bayes_lora.experiments.sweep.status import read_status
from bayes_lora.experiments.sweep.tables import Line, lines_of
from bayes_lora.metrics.robustness import distances_p, robustness, signed_rank_p
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


def lines_by_name(folder: Path) -> dict[tuple[str, str, str], Line]:
    lines = lines_of(read_results(folder))
    return {(line.method, line.metric, line.summary.statistic): line for line in lines}


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_lines_are_those_of_the_results(finished: Path, metric: str) -> None:
    rows = [row for row in read_results(finished).rows if row.method == "map"]
    values = {
        rate: [row.metrics[metric] for row in rows if row.point["learning_rate"] == rate] for rate in (1e-3, 1e-2, 1e-1)
    }
    expected = asdict(robustness(np.array(list(values.values())), higher_is_better=metric == "accuracy", middle=1))
    lines = lines_by_name(finished)
    found = {name: lines["map", metric, name].summary.value for name in expected if name != "num_cells"}
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-12)
    assert lines["map", metric, "spread"].cells == expected["num_cells"] == 6
    if metric == "nll":
        assert lines["map", metric, "intrinsic"].summary.value == pytest.approx(1 / expected["median"])


def test_intervals_lie_about_what_they_are_of(finished: Path) -> None:
    lines = lines_by_name(finished)
    for name in ("median", "spread", "iqr", "regret_of_middle", "regret_of_random"):
        summary = lines["map", "nll", name].summary
        assert summary.low_cells <= summary.value + 1e-12
        assert summary.low_rows <= summary.value <= summary.high_rows
    for name in ("spread", "regret_of_middle"):
        summary = lines["map", "nll", name].summary
        assert summary.high_cells <= summary.value + 1e-12  # of no resample it is larger


def test_an_interval_of_a_regret_over_rows_is_that_of_a_slow_bootstrap(finished: Path) -> None:
    results = read_results(finished)
    grid = grids_of(results)["mrpc"]["map"]
    places = list(grid.by_place)
    losses = grid.losses(places)
    assert losses is not None
    generator, slow = np.random.default_rng(5), []
    for _ in range(400):
        rows = generator.integers(losses["nll"].shape[1], size=losses["nll"].shape[1])
        means = {place: losses["nll"][number, rows].mean() for number, place in enumerate(places)}
        points = [np.mean([means[place] for place in places if place[0] == point]) for point in dict(places)]
        middle = [dict(point)["learning_rate"] for point in dict(places)].index(1e-2)
        slow.append(points[middle] - min(points))
    summary = lines_by_name(finished)["map", "nll", "regret_of_middle"].summary
    for number, share in ((summary.low_rows, 0.025), (summary.high_rows, 0.975)):
        # Quantiles of 400 draws here and of 2,000 there: four standard errors of both.
        error = 4 * math.sqrt(share * (1 - share) * (1 / 400 + 1 / 2_000))
        assert np.mean(np.array(slow) < number - 1e-9) <= share + error
        assert np.mean(np.array(slow) <= number + 1e-9) >= share - error


def test_differences_are_over_the_cells_that_both_have(finished: Path) -> None:
    found = differences_of(read_results(finished), ["map", "monteclora+mean"])
    pairs = {(line.method, line.minus): line.cells for line in found}
    # Along an axis of its own a method has no cell in common with one that has none.
    assert pairs == {("base_rate", "map"): 6, ("monteclora", "monteclora+mean"): 12}
    with pytest.raises(DataError, match="--reference 'nobody' is none of the methods, map,"):
        differences_of(read_results(finished), ["nobody"])
    # Two references are compared with each other once.
    found = differences_of(read_results(finished), ["map", "base_rate"])
    assert {(line.method, line.minus) for line in found} == {("base_rate", "map")}


def test_a_difference_is_that_of_two_lines_with_the_tests_of_its_cells(finished: Path) -> None:
    lines, grids = lines_by_name(finished), grids_of(read_results(finished))["mrpc"]
    places = list(grids["map"].by_place)
    first, second = (grids[name].values("nll", places) for name in ("base_rate", "map"))
    found = {
        line.summary.statistic: line for line in differences_of(read_results(finished), ["map"]) if line.metric == "nll"
    }
    assert set(found) == {"median", "spread", "iqr", "intrinsic", "regret_of_middle", "regret_of_random"}
    for name, line in found.items():
        expected = lines["base_rate", "nll", name].summary.value - lines["map", "nll", name].summary.value
        assert line.summary.value == pytest.approx(expected, abs=1e-12)
    assert found["median"].p_value == signed_rank_p(first, second)
    assert found["iqr"].p_value == distances_p(first, second)
    assert all(math.isnan(found[name].p_corrected) for name in found if name not in ("median", "iqr"))


def invented(finished: Path, methods: dict[str, float], noise: float = 0.1) -> Finished:
    """27 cells of each method, whose NLL lies so far apart; a negative control has the same scatter."""
    generator, about = np.random.default_rng(0), dict(read_results(finished).about)
    about |= {"grid": {"learning_rate": list(range(9))}, "methods": list(methods)}
    shared = generator.standard_normal((9, 3))
    rows = [
        Row(
            "mrpc",
            method,
            {"learning_rate": rate},
            seed,
            {"nll": 1 + scatter * shared[rate, seed] + spoilt},
            {"cell": ""},
        )
        for method, scatter in methods.items()
        for rate in range(9)
        for seed in range(3)
        for spoilt in [noise * generator.standard_normal()]
    ]
    return Finished(finished, about, tuple(rows))


def test_what_moves_less_is_said_to_and_what_does_not_is_not(finished: Path) -> None:
    methods = {"map": 1.0, "lora[weight_decay=10]": 0.2, "monteclora": 0.2, "blob": 1.0}
    results = invented(finished, methods)
    references = default_references(list(methods))
    assert references == ["map", "lora[weight_decay=10]"]
    found: dict[tuple[str, str], list[Difference]] = {}
    for difference in differences_of(results, references):
        found.setdefault((difference.method, difference.minus), []).append(difference)
    assert {pair: moves(of) for pair, of in found.items()} == {
        ("lora[weight_decay=10]", "map"): "less",
        ("monteclora", "map"): "less",
        ("blob", "map"): "not told apart",
        ("monteclora", "lora[weight_decay=10]"): "not told apart",
        ("blob", "lora[weight_decay=10]"): "more",
    }
    # Five comparisons of NLL's distances: the smallest p is multiplied by five.
    of_iqr = [d for of in found.values() for d in of if d.summary.statistic == "iqr"]
    least = min(of_iqr, key=lambda difference: difference.p_value)
    assert least.p_corrected == pytest.approx(5 * least.p_value)


def test_what_others_are_compared_with_by_default() -> None:
    assert default_references(["full", "blob"]) == ["full"]
    assert default_references(["full", "map", "temperature", "lora[learning_rate=0.1]+temperature"]) == ["map"]


def test_row_intervals_need_the_predictions(finished: Path, tmp_path: Path) -> None:
    for name in ("study.json", "results.csv"):
        shutil.copy(finished / name, tmp_path / name)
    line = lines_by_name(tmp_path)["map", "nll", "median"]
    assert math.isnan(line.summary.low_rows)
    assert math.isfinite(line.summary.low_cells)
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


def test_losses_are_of_the_methods_that_were_trained(finished: Path) -> None:
    """Not of the folders that they were trained in: the posterior's differ along its own axis."""
    figure = loss_curves(read_results(finished), "mrpc")
    assert figure is not None
    (axes,) = figure.axes
    named = [line.get_label() for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert named == ["map", "monteclora"]
    # Thin lines: a cell of LoRA for each of three rates and two seeds, of the posterior for each of two scales besides.
    assert len(axes.lines) - len(named) == 6 + 12


def test_the_command_lines(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "published.json"
    entry = {"task": "mrpc", "method": "map", "statistic": "nll spread", "value": 0.125}
    path.write_text(json.dumps({"source": "nowhere", "values": [entry]}))
    told = json.loads(run("tables", finished, "--published", path, "--reference", "map", "--json").stdout)
    assert {line["statistic"] for line in told["robustness"] if line["published"] == 0.125} == {"spread"}
    assert "(0.125)" in (finished / "robustness.md").read_text()
    with (finished / "robustness.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(told["robustness"])
    printed = run("tables", finished).stdout
    for said in (
        "robustness.md",
        "mrpc: nll over cells",
        "extrinsic robustness",
        "mrpc: accuracy, differences",
        "corrected by Holm",
    ):
        assert said in printed
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
