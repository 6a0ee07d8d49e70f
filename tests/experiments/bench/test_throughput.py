"""The cells of a sweep, done in several ways, are the same cells."""

from pathlib import Path

import pytest

from bayes_lora.errors import BenchError
from bayes_lora.experiments.bench.suites import BY_NAME_ONLY, SUITES, Bench, run_bench
from bayes_lora.experiments.bench.throughput import ENTERED, Grid, work
from bayes_lora.experiments.command_line.bench_results import planned
from bayes_lora.inference.storage.predictions import read_prediction


def predicted(folder: Path) -> dict[str, object]:
    """Stored predictions, by their place in a folder."""
    files = sorted(folder.rglob("predictions/**/*-evaluated.parquet"))
    return {str(file.relative_to(folder)): read_prediction(file).prediction.logits.tolist() for file in files}


def test_a_worker_does_what_compare_does_alone(base: str, tmp_path: Path) -> None:
    grid = Grid(base, rows=24, epochs=1, rates=1, seeds=1)
    recipe = grid.write(tmp_path)
    alone, by_worker = (predicted(work(way, recipe)) for way in ("compare", "sweep_1"))
    assert len(alone) == grid.described()["cells"] == 2
    assert by_worker == alone


def test_a_cell_that_fails_is_no_measurement(base: str, tmp_path: Path) -> None:
    recipe = Grid(base, rows=24, epochs=1, rates=1, seeds=1).write(tmp_path)
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("[0.001]", "[1e30]"), encoding="utf-8")
    with pytest.raises(BenchError, match="cells failed, the first of them so: "):
        work("compare", recipe)


def test_it_is_measured_where_it_is_named() -> None:
    _, suites = planned("all", None, True, None, None)
    assert set(SUITES) - set(suites) == set(BY_NAME_ONLY) == {"sweep"}
    assert planned("sweep", None, True, None, None)[1] == ["sweep"]


def test_without_optuna_nothing_is_claimed_about_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_lora.experiments.bench.suites.find_spec", lambda name: None)
    results = run_bench(Bench(quick=True), ["sweep"])
    assert not results.records
    assert "the extra 'sweep' is not installed" in results.not_measured["sweep"]


@pytest.mark.slow  # each process imports everything anew
def test_every_way_has_a_turn_in_every_round(base: str) -> None:
    results = run_bench(Bench(base, rounds=1, quick=True), ["sweep"])
    found = {record.contender: record for record in results.of("sweep", "cells")}
    assert set(found) == {who.name for who in ENTERED}
    assert set(found["sweep_2"].ratios) == {"compare"}
    assert all(record.value.median > 0 for record in found.values())
