"""A worker of a sweep: claims a cell, does it as `compare` would, reports it, until none is left."""

import math
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import getpid
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bayes_lora.errors import FolderBusyError, RunExistsError
from bayes_lora.experiments.compare.fitting import HISTORY_FILE
from bayes_lora.experiments.compare.report import scores
from bayes_lora.experiments.compare.running import Results, run_study
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.experiments.sweep.cells import Cell
from bayes_lora.experiments.sweep.queue import Queue
from bayes_lora.files import write_file

CELLS, TRAINED = "cells", "trained"
"""Folders: of the studies of cells within that of a sweep, and of what was trained within that of a study."""

# Between looks for cells that a dead worker had; an idle worker ends so much after the last cell is done, at most.
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Work:
    """What one worker needs.

    Attributes:
        queue: of the sweep.
        folder: of the sweep on this machine.
        data_dir: see `read_recipe`.
        device: where networks train and predict.
        keep_trained: whether trained networks stay, which only take room once predictions are stored.
        until: no cell is claimed after this, in seconds since the epoch.
    """

    queue: Queue
    folder: Path
    data_dir: Path | None = None
    device: torch.device = CPU
    keep_trained: bool = False
    until: float = math.inf

    def run(self, on_cell: Callable[[Cell, dict[str, Any], dict[str, str]], None] | None = None) -> None:
        """Work until all cells are done, here or elsewhere, or it is too late.

        Args:
            on_cell: told of each cell done here, its report, and what failed in it.
        """
        worker = f"{socket.gethostname()}, process {getpid()}"
        while time.time() < self.until:
            claim = self.queue.claim(worker)
            if claim is None:
                if self.queue.is_over():
                    return
                time.sleep(self._poll_seconds)  # others are at work, whose cells may wait again
                continue
            with self.queue.alive(claim):
                report, failed = self.do(claim.cell)
            if self.queue.finish(claim, report, failed) and on_cell is not None:
                on_cell(claim.cell, report, failed)

    def do(self, cell: Cell) -> tuple[dict[str, Any], dict[str, str]]:
        """Do a cell in its folder, or find it done there: its report, and what failed, by method."""
        started, folder = time.time(), self.folder / CELLS / cell.id
        try:
            results = self._results(cell, folder)
            found = {method: of_seeds[cell.seed] for method, of_seeds in scores(results).items()}
            failed = {method.label: why for (method, _), why in results.failed.items()}
        except Exception as error:
            # A full disk, or a base model that is not there, fails every cell alike; other files in a folder do not.
            if isinstance(error, OSError) and not isinstance(error, RunExistsError):
                raise
            found, failed = {}, {method.label: f"{type(error).__name__}: {error}" for method in cell.methods}
        report = {
            "scores": {method.label: plain(numbers) for method, numbers in found.items()},
            "seconds": round(time.time() - started, 2),
            "value": _value(found.values()),
        }
        if not failed and not self.keep_trained:
            keep_histories(folder / TRAINED)
        return report, failed

    def _results(self, cell: Cell, folder: Path) -> Results:
        study, quiet = cell.study(self.data_dir), Console(quiet=True)
        while True:
            try:
                return run_study(study, cell.methods, folder, console=quiet, device=self.device)
            except FolderBusyError:  # somebody was slow and taken for dead; when they are done, the cell is found done
                time.sleep(self._poll_seconds)

    @property
    def _poll_seconds(self) -> float:
        return min(_POLL_SECONDS, self.queue.beat_seconds)


def keep_histories(trained: Path) -> None:
    """Remove what a cell has trained, but for how its losses fell."""
    found = {path: path.read_bytes() for path in trained.rglob(HISTORY_FILE)}
    shutil.rmtree(trained, ignore_errors=True)
    for path, history in found.items():
        write_file(path, history)


def plain(numbers: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has numbers: null where there is none."""
    return {name: float(number) if math.isfinite(number) else None for name, number in numbers.items()}


def _value(found: Any) -> float:
    """What a viewer of the storage sorts by: the mean NLL of the cell's methods, 0 where they have none."""
    known = [numbers["nll"] for numbers in found if math.isfinite(numbers.get("nll", math.nan))]
    return sum(known) / len(known) if known else 0.0
