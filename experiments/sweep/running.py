"""Running a sweep: its folder, its storage, and its workers."""

import hashlib
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from bayes_lora.checks import require_count, require_positive
from bayes_lora.errors import StorageError
from bayes_lora.experiments import ignore_known_warnings
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.experiments.runs.study_folder import open_study
from bayes_lora.experiments.sweep.cells import Cell, cells_of
from bayes_lora.experiments.sweep.queue import Queue
from bayes_lora.experiments.sweep.recipe import Recipe
from bayes_lora.experiments.sweep.results import Row, rows_in, write_results
from bayes_lora.experiments.sweep.status import STORAGE_FILE, Status, sqlite_url
from bayes_lora.experiments.sweep.storage import open_storage, shown_url
from bayes_lora.experiments.sweep.working import Work
from bayes_lora.files import sha256_of, write_json

_REFRESH_SECONDS = 1.0
_RESTARTS = 5  # of each worker
_OF_BASE = "the base model"


@dataclass(frozen=True)
class Options:
    """How a sweep is run; its results depend on none of it.

    Attributes:
        storage: an Optuna URL, or None for an SQLite file in the sweep's folder.
        workers: processes here.
        max_hours: no cell is claimed after so many.
        device: where networks train and predict.
        keep_trained: whether trained networks stay.
        beat_seconds: how often a worker says that it is alive; after six that are missed its cell waits again.
    """

    storage: str | None = None
    workers: int = 1
    max_hours: float | None = None
    device: torch.device = CPU
    keep_trained: bool = False
    beat_seconds: float = 10.0

    def __post_init__(self) -> None:
        require_count("workers", self.workers)
        require_positive("heartbeat", self.beat_seconds)


@dataclass(frozen=True)
class Sweep:
    """A recipe with the places of its rows and results: all that a process needs to work on it.

    Attributes:
        recipe: of the sweep.
        folder: of its results on this machine.
        data_dir: see `read_recipe`.
        options: how it is run.
        checksums: of each task's rows, and of a base model that is a folder; all machines must have the same.
        until: no cell is claimed after this, in seconds since the epoch.
    """

    recipe: Recipe
    folder: Path
    data_dir: Path | None
    options: Options
    checksums: dict[str, str]
    until: float = math.inf

    @classmethod
    def of(cls, recipe: Recipe, folder: Path, options: Options, data_dir: Path | None = None) -> "Sweep":
        """Read the rows once, and the base model's weights where the recipe names it by a relative path.

        Raises:
            TaskError, DataError: see `Study.load`.
        """
        checksums = {}
        for cell in cells_of(recipe):
            if cell.task.name not in checksums:
                study = cell.study(data_dir)
                checksums[cell.task.name] = study.checksum(study.load())
        if recipe.base_place != recipe.base_model:  # made on this machine, perhaps on each one anew
            checksums[_OF_BASE] = _weights_checksum(Path(recipe.base_place))
        until = math.inf if options.max_hours is None else time.time() + 3600 * options.max_hours
        return cls(recipe, folder, data_dir, options, checksums, until)

    def queue(self, *, create: bool = False) -> Queue:
        """Its cells.

        Raises:
            StorageError: see `open_storage`.
        """
        about = {**self.recipe.to_json(), "rows": self.checksums}
        storage = open_storage(self.options.storage or sqlite_url(self.folder), self.recipe.name, about, create=create)
        return Queue(storage, {cell.id: cell for cell in cells_of(self.recipe)}, self.options.beat_seconds)

    def open_folder(self) -> None:
        """Make it, or check that it is this sweep's.

        Raises:
            RunExistsError: it holds something else.
        """
        settings = {
            **self.recipe.to_json(),
            "rows": self.checksums,
            "methods": [method.label for method in self.recipe.methods],
            "seeds": list(self.recipe.seeds),
            "about": self.recipe.about,
            "source": self.recipe.source,
        }
        place = hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:16]
        # The same command may be given several times at once.
        with FileLock(Path(tempfile.gettempdir()) / f"bayes-lora-{place}.lock"):
            open_study(self.folder, settings, growing=("methods", "seeds", "about", "source"))
            known = None if self.options.storage is None else shown_url(self.options.storage)
            write_json(self.folder / STORAGE_FILE, {"storage": known})

    def work(self, queue: Queue, on_cell: Callable[[Cell, dict[str, Any], dict[str, str]], None] | None = None) -> None:
        """What one worker does."""
        options = self.options
        Work(queue, self.folder, self.data_dir, options.device, options.keep_trained, self.until).run(on_cell)


def _weights_checksum(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()[:16]


def run_sweep(sweep: Sweep, console: Console) -> tuple[list[Row], Status]:
    """Do what is left of a sweep, together with whoever works on it elsewhere: its results so far, and how far it is.

    Args:
        sweep: any.
        console: what has been done is said there; on a terminal as a table.

    Raises:
        StorageError: the storage cannot be opened or holds something else; or workers died again and again.
        RunExistsError: the folder holds something else.
    """
    sweep.open_folder()
    queue = sweep.queue(create=True)
    try:
        queue.fill()
        _work(sweep, queue, console)
        rows, status = rows_in(queue), Status.of(queue)
    finally:
        queue.storage.close()
    write_results(sweep.folder, sweep.recipe, rows)
    return rows, status


def _work(sweep: Sweep, queue: Queue, console: Console) -> None:
    """Here or in processes, and show it."""
    with Live(Status.of(queue).table(), console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            if console.is_terminal:
                live.update(Status.of(queue).table(), refresh=True)

        def say(cell: Cell, report: dict[str, Any], failed: dict[str, str]) -> None:
            said = f"[red]failed: {escape('; '.join(failed.values()))}[/]" if failed else f"{report['seconds']:.0f} s"
            console.print(f"{escape(cell.id)}: {said}", soft_wrap=True)
            show()

        if sweep.options.workers == 1:
            sweep.work(queue, say)
        else:
            _supervise(sweep, show)


def _supervise(sweep: Sweep, show: Callable[[], None]) -> None:
    """Keep workers at work, each in a process on one core; one that was killed is started again."""
    context, workers = multiprocessing.get_context("spawn"), sweep.options.workers

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=work_in_process, args=(sweep,))
        process.start()
        return process

    running, restarts = [start() for _ in range(workers)], 0
    try:
        while running:
            wait([process.sentinel for process in running], _REFRESH_SECONDS)  # no longer than until one ends
            show()
            died = sum(process.exitcode not in (None, 0) for process in running)
            running = [process for process in running if process.exitcode is None]
            restarts += died
            if restarts > _RESTARTS * workers:
                raise StorageError(
                    f"worker processes ended {restarts} times before their work was done; what they said is above. "
                    "Where nothing is, the system killed them for want of memory: give fewer --workers."
                )
            running += [start() for _ in range(died)]
    finally:
        for process in running:
            process.terminate()
            process.join()


def work_in_process(sweep: Sweep) -> None:
    """What a worker process does, until its parent ends or the work does."""
    ignore_known_warnings()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    queue = sweep.queue()
    try:
        sweep.work(queue)
    finally:
        queue.storage.close()
