"""How long the cells of a sweep take: one after the other by `compare` alone, and by the workers of `sweep`.

Each way runs in a process of its own, from its start on, so that what it has to import counts. Threads are one for each
process: what workers are for is to use the others.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rich.console import Console

from bayes_lora.errors import BenchError
from bayes_lora.experiments.bench.contenders import Entrant
from bayes_lora.experiments.rows.rows import write_jsonl
from bayes_lora.experiments.tasks.embedded_task import make_embedded_task

ALONE = Entrant("compare", "compare, cell after cell", ours=False)
WORKERS = {f"sweep_{count}": count for count in (1, 2)}
"""How many each way of `sweep` has."""

ENTERED = (ALONE, *(Entrant(name, f"sweep --workers {count}", ours=True) for name, count in WORKERS.items()))
_RECIPE = """\
name: throughput
base_model: {base_model}
tasks:
  - {{name: pairs, train_file: rows.jsonl, text_columns: [sentence1, sentence2], label_column: label}}
methods: [map, monteclora]
settings: {{epochs: {epochs}, batch_size: 8, max_length: 32, held_out: 0.2}}
grid:
  learning_rate: {rates}
seeds: {seeds}
"""


@dataclass(frozen=True)
class Grid:
    """A sweep of LoRA with and without a posterior over learning rates and seeds, on rows of the embedded task.

    Attributes:
        base_model: as ``--base-model`` takes it.
        rows: to train on and to evaluate on.
        epochs: of each training.
        rates, seeds: how many there are.
    """

    base_model: str
    rows: int = 400
    epochs: int = 3
    rates: int = 4
    seeds: int = 2

    def described(self) -> dict[str, int | str]:
        """What tells it from another."""
        return {"cells": 2 * self.rates * self.seeds, "rows": self.rows, "epochs": self.epochs}

    def write(self, folder: Path) -> Path:
        """Its rows, and its recipe."""
        task = make_embedded_task(num_train=self.rows, num_validation=4, num_out_of_distribution=4)
        columns = ("sentence1", "sentence2", "label")
        write_jsonl(folder / "rows.jsonl", [{name: row[name] for name in columns} for row in task.rows.train])
        rates = [1e-3 * 2**power for power in range(self.rates)]
        recipe = folder / "recipe.yaml"
        text = _RECIPE.format(
            base_model=self.base_model, epochs=self.epochs, rates=rates, seeds=list(range(self.seeds))
        )
        recipe.write_text(text, encoding="utf-8")
        return recipe


def measured(grid: Grid, rounds: int, *, seed: int, on_turn: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds for all cells, {way: (round,)}; in each round every way has a turn, in a random order.

    Args:
        grid: of cells.
        rounds: at least 1.
        seed: of the order.
        on_turn: called after each.

    Raises:
        BenchError: a process failed; with what it said.
    """
    seconds: dict[str, list[float]] = {who.name: [] for who in ENTERED}
    order, random = list(seconds), Random(seed)
    for _ in range(rounds):
        random.shuffle(order)
        for way in order:
            with tempfile.TemporaryDirectory() as folder:
                seconds[way].append(_timed(way, grid.write(Path(folder))))
            on_turn()
    return seconds


def _timed(way: str, recipe: Path) -> float:
    command = [sys.executable, "-m", "bayes_lora.experiments.bench.throughput", json.dumps([way, str(recipe)])]
    started = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode != 0:
        raise BenchError(
            f"the cells of a sweep failed by {way!r} with exit status {done.returncode}. Leave the suite 'sweep' out, "
            f"or mend what it said:\n{done.stderr[-2000:]}"
        )
    return time.monotonic() - started


def work(way: str, recipe: Path) -> Path:
    """Do all cells in this process, or in those that it starts; the folder of their studies.

    Raises:
        BenchError: a method failed in a cell.
    """
    # The extra `sweep` is needed here alone.
    from bayes_lora.experiments.compare.running import run_study
    from bayes_lora.experiments.sweep.cells import cells_of
    from bayes_lora.experiments.sweep.recipe import read_recipe
    from bayes_lora.experiments.sweep.running import Options, Sweep, run_sweep
    from bayes_lora.experiments.sweep.working import CELLS

    read, folder, quiet = read_recipe(str(recipe)), recipe.parent / way, Console(quiet=True)
    failed: list[str] = []
    if way == ALONE.name:
        for cell in cells_of(read):
            results = run_study(cell.study(), cell.methods, folder / CELLS / cell.id, console=quiet)
            failed += results.failed.values()
    else:
        _, status = run_sweep(Sweep.of(read, folder, Options(workers=WORKERS[way])), quiet)
        failed += status.failed.values()
    if failed:
        raise BenchError(f"{len(failed)} cells failed, the first of them so: {failed[0]}")
    return folder / CELLS


if __name__ == "__main__":
    asked, place = json.loads(sys.argv[1])
    work(asked, Path(place))
