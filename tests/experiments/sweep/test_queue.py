"""A queue of cells: who is dead, what is done twice, what failed."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.runs.study_folder import only_one
from bayes_lora.experiments.sweep.cells import cells_of
from bayes_lora.experiments.sweep.queue import CELL, Queue
from bayes_lora.experiments.sweep.recipe import read_recipe
from bayes_lora.experiments.sweep.results import rows_in
from bayes_lora.experiments.sweep.running import run_sweep
from bayes_lora.experiments.sweep.status import Status
from bayes_lora.experiments.sweep.storage import open_storage
from bayes_lora.experiments.sweep.working import Work
from tests.experiments.commands import run
from tests.experiments.compare.studies import QUIET
from tests.experiments.sweep.sweeps import make_sweep, without_costs, write_recipe

TWO = "tasks: [mrpc]\nmethods: [base_rate]\nseeds: [0, 1]\n"


def report(value: float) -> dict[str, object]:
    return {"scores": {"base_rate": {"nll": value}}, "seconds": 1.0, "value": value}


@pytest.fixture
def queues(tmp_path: Path) -> Iterator[tuple[Queue, Queue]]:
    """Of two processes, with two cells."""
    cells = {cell.id: cell for cell in cells_of(read_recipe(str(write_recipe(tmp_path, "minilm", TWO))))}
    opened = [open_storage(f"sqlite:///{tmp_path}/queue.db", "small", {}, create=True) for _ in range(2)]
    one, other = (Queue(storage, cells, beat_seconds=0.05, patience=4) for storage in opened)
    yield one, other
    for storage in opened:
        storage.close()


def states(queue: Queue) -> list[tuple[str, str]]:
    return [(trial.user_attrs[CELL][-20:-15], trial.state.name) for trial in queue.storage.trials()]


def test_the_cell_of_a_dead_worker_waits_again_and_its_late_result_does_not_count(queues: tuple[Queue, Queue]) -> None:
    one, other = queues
    one.fill()
    dead, second = one.claim("dies"), one.claim("lives")
    assert dead is not None
    assert second is not None
    assert other.claim("watches") is None  # from now on it has seen both
    with one.alive(second):
        time.sleep(0.6)
        again = other.claim("watches")
        assert again is not None
        assert again.cell == dead.cell
        assert other.claim("watches") is None  # the other one is alive
    assert not one.finish(dead, report(0.1), {})
    assert other.finish(again, report(0.2), {})
    assert one.finish(second, report(0.3), {})
    assert one.is_over()
    assert [row.metrics["nll"] for row in rows_in(one)] == [0.2, 0.3]
    assert Status.of(other).counts == {"mrpc": {"done": 2}}


def test_a_cell_that_was_added_twice_is_done_once(queues: tuple[Queue, Queue]) -> None:
    one, other = queues
    one._add(list(one.cells))
    other._add(list(one.cells))  # as a process on a server does that looked at the same instant
    found = [one.claim("first"), other.claim("second"), one.claim("third")]
    claims = [claim for claim in found if claim is not None]
    assert {claim.cell.id for claim in claims} == set(one.cells)
    assert len(claims) == 2
    assert sorted(state for _, state in states(one)) == ["PRUNED", "PRUNED", "RUNNING", "RUNNING"]


def test_a_cell_that_failed_waits_again_when_the_command_is_given_again(queues: tuple[Queue, Queue]) -> None:
    one, _ = queues
    one.fill()
    first = one.claim("first")
    assert first is not None
    one.finish(first, report(0.0), {"base_rate": "DataError: too few rows"})
    assert one.claim("first") is not None
    assert one.claim("first") is None
    assert Status.of(one).failed == {first.cell.id: "base_rate: DataError: too few rows"}
    one.fill()
    again = one.claim("second")
    assert again is not None
    assert again.cell == first.cell
    assert one.finish(again, report(0.5), {})
    assert Status.of(one).failed == {}


@pytest.mark.slow  # each process imports everything anew
def test_processes_on_one_machine(base: str, data_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base, TWO + "settings: {epochs: 1, num_samples: 1}\n")
    expected, _ = run_sweep(make_sweep(recipe, data_dir, tmp_path / "alone"), QUIET)
    found, status = run_sweep(make_sweep(recipe, data_dir, tmp_path / "two", workers=2), QUIET)
    assert status.counts == {"mrpc": {"done": 2}}
    assert without_costs(found) == without_costs(expected)


def test_what_the_command_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Give a recipe and --out"):
        run("sweep")
    with pytest.raises(ConfigurationError, match="--status runs nothing, so --out would do nothing"):
        run("sweep", "--status", tmp_path, "--out", tmp_path)


def test_a_folder_in_which_somebody_is_at_work_is_waited_for(
    base: str, data_dir: Path, tmp_path: Path, empty_queue: Queue
) -> None:
    recipe = read_recipe(str(write_recipe(tmp_path, base, TWO)), None, data_dir)
    (cell, _), work = cells_of(recipe), Work(empty_queue, tmp_path)
    expected, failed = work.do(cell)
    assert failed == {}
    done: list[tuple[dict[str, Any], dict[str, str]]] = []
    waiting = threading.Thread(target=lambda: done.append(work.do(cell)), daemon=True)
    with only_one(tmp_path / "cells" / cell.id):
        waiting.start()
        waiting.join(0.5)
        assert not done
    waiting.join(30)
    ((found, failed),) = done
    assert (found["scores"], failed) == (expected["scores"], {})
