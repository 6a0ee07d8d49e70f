"""How far a sweep is, as any machine that reaches its storage sees it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState
from rich.table import Table
from rich.text import Text

from bayes_lora.errors import DataError
from bayes_lora.experiments.sweep.queue import FAILED, REPORT, Queue
from bayes_lora.experiments.sweep.results import SWEEP_FILE
from bayes_lora.experiments.sweep.storage import open_storage
from bayes_lora.files import read_json

STORAGE_FILE, SQLITE_FILE = "storage.json", "sweep.db"
_STATES = {
    TrialState.COMPLETE: "done",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Status:
    """How far a sweep is.

    Attributes:
        counts: cells by task, and by state: done, running, waiting, failed.
        failed: why, by cell.
        seconds: that the cells done took, together.
    """

    counts: Mapping[str, Mapping[str, int]]
    failed: Mapping[str, str]
    seconds: float

    @classmethod
    def of(cls, queue: Queue) -> "Status":
        """That of now."""
        counts: dict[str, Counter[str]] = {}
        failed, seconds = {}, 0.0
        for cell, trial in queue.by_cell().items():
            counts.setdefault(cell.partition("/")[0], Counter())[_STATES[trial.state]] += 1
            seconds += trial.user_attrs.get(REPORT, {}).get("seconds", 0.0)
            if trial.state == TrialState.FAIL:
                failed[cell] = "; ".join(f"{name}: {why}" for name, why in trial.user_attrs.get(FAILED, {}).items())
        return cls(counts, failed, seconds)

    def total(self, state: str) -> int:
        """Cells of all tasks in a state."""
        return sum(of.get(state, 0) for of in self.counts.values())

    @property
    def left(self) -> int:
        """Cells that wait or are being done."""
        return self.total("waiting") + self.total("running")

    def table(self) -> Table:
        """A row for each task, and one for all."""
        table = Table(title="cells", title_justify="left")
        table.add_column("task", no_wrap=True)
        for state in (*_STATES.values(), "of", "hours done"):
            table.add_column(state, justify="right")
        rows = dict(self.counts)
        if len(rows) > 1:
            rows["all"] = {state: self.total(state) for state in _STATES.values()}
        for index, (task, of) in enumerate(rows.items()):
            hours = f"{self.seconds / 3600:.2f}" if index == len(rows) - 1 else ""
            cells = [*(str(of.get(state, 0)) for state in _STATES.values()), str(sum(of.values())), hours]
            table.add_row(Text(task), *map(Text, cells))
        return table

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {"cells": {task: dict(of) for task, of in self.counts.items()}, "failed": dict(self.failed)}


def read_status(folder: Path, storage: str | None = None) -> Status:
    """Of the sweep whose folder this is.

    Args:
        folder: of the sweep, on any machine that works on it.
        storage: its URL, where that is not the folder's own file or holds a password, which is not written down.

    Raises:
        DataError: it is no folder of a sweep.
        StorageError: see `open_storage`.
    """
    try:
        name, known = read_json(folder / SWEEP_FILE)["name"], read_json(folder / STORAGE_FILE)["storage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no folder of a sweep ({error}). Give the --out of one.") from error
    opened = open_storage(storage or known or sqlite_url(folder), name, None)
    try:
        return Status.of(Queue(opened, {}))
    finally:
        opened.close()


def sqlite_url(folder: Path) -> str:
    """Of the storage that a sweep has where nobody names one."""
    return f"sqlite:///{folder.absolute() / SQLITE_FILE}"
