"""Every cell counts once, whatever happens to those who do them."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

from bayes_lora.experiments.sweep.queue import CELL
from bayes_lora.experiments.sweep.results import rows_in
from bayes_lora.experiments.sweep.running import Sweep, run_sweep, work_in_process
from tests.experiments.sweep.sweeps import make_sweep, without_costs, write_recipe

QUIET = Console(quiet=True)
FORTY = """
tasks: [mrpc, {task: mrpc, name: foreign, outside: rte}]
methods: [base_rate]
settings: {epochs: 1, num_samples: 1, max_length: 16, held_out: 0.3}
grid:
  learning_rate: [1e-4, 1e-3, 1e-2, 1e-1, 1]
  train_rows: [16, 20]
seeds: [0, 1]
"""


def killed_and_started_again(sweeps: list[Sweep], every: float) -> int:
    """Work on a sweep in as many processes, one of which is killed again and again; how often that was."""
    # Started anew at once: what they import is there already, and as in a DataLoader's workers torch has one thread.
    context = multiprocessing.get_context("fork")

    def start(sweep: Sweep) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=work_in_process, args=(sweep,))
        process.start()
        return process

    running, killed, last = [start(sweep) for sweep in sweeps], 0, time.monotonic()
    until = last + 240
    while any(process.exitcode is None for process in running):
        assert time.monotonic() < until, "the workers came to no end"
        time.sleep(0.05)
        if time.monotonic() - last < every:
            continue
        at = killed % len(running)
        if running[at].exitcode is None:
            os.kill(running[at].pid or 0, signal.SIGKILL)
            running[at].join()
            running[at] = start(sweeps[at])
            killed += 1
        last = time.monotonic()
    assert [process.exitcode for process in running] == [0] * len(running)
    return killed


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_forty_cells_by_three_workers_of_which_one_is_killed(
    kind: str, data_dir: Path, base: str, tmp_path: Path
) -> None:
    url = os.environ.get("BAYES_LORA_STORAGE_URL") if kind == "server" else None
    if kind == "server" and not url:
        pytest.skip("set BAYES_LORA_STORAGE_URL to the URL of an empty database on a server")
    recipe = write_recipe(tmp_path, base, FORTY)
    alone = make_sweep(recipe, data_dir, tmp_path / "alone")
    expected, status = run_sweep(alone, QUIET)
    assert status.total("done") == len(expected) == 40

    if kind == "server":  # nothing but the URL is shared
        recipe.write_text(recipe.read_text().replace("name: small", f"name: small-{time.time_ns()}"))
    folders = [tmp_path / (f"worker-{number}" if kind == "server" else "together") for number in range(3)]
    sweeps = [make_sweep(recipe, data_dir, folder, storage=url, beat_seconds=0.2) for folder in folders]
    queue = sweeps[0].queue(create=True)
    queue.fill()
    assert killed_and_started_again(sweeps, every=1.0) >= 3

    assert without_costs(rows_in(queue)) == without_costs(expected)
    completed = [trial.user_attrs[CELL] for trial in queue.storage.trials() if trial.state.name == "COMPLETE"]
    queue.storage.close()
    assert sorted(completed) == sorted(queue.cells)
