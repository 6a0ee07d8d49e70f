"""The cells of a sweep as trials of an Optuna study: each is done by one worker, and counts once.

A cell is a waiting trial; a worker *claims* it (it is running), says every few seconds that it is alive, and *finishes*
it. Optuna's own heartbeats are of relational storages only, and miss a worker that dies before its first; see
`findings/`. So a running trial carries a number that its worker raises. One whose number stands still is taken for dead
by whoever has watched it for long enough, by the watcher's own clock: clocks of machines need not agree.

Nothing is exact about a death, so a cell may be done twice. It counts once: the first of its trials that was completed
has its results, and cells are deterministic.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from bayes_lora.experiments.sweep.cells import Cell
from bayes_lora.experiments.sweep.storage import Storage

CELL, BEAT, REPORT, FAILED, WORKER = "cell", "beat", "report", "failed", "worker"

_LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
_TOLD = (TrialState.FAIL, *_LIVE)  # the more, the later


@dataclass(frozen=True)
class Claim:
    """A cell that this process does, and the trial that says so."""

    cell: Cell
    trial_id: int


@dataclass
class Queue:
    """A sweep's cells in its storage, as one process sees them.

    Attributes:
        storage: of the sweep.
        cells: by their ids.
        beat_seconds: how often a worker says that it is alive.
        patience: beats that may be missed.
    """

    storage: Storage
    cells: Mapping[str, Cell]
    beat_seconds: float = 10.0
    patience: int = 6
    _seen: dict[int, tuple[int, float]] = field(default_factory=dict)  # by trial: its beat, and since when

    def fill(self) -> None:
        """Make every cell wait that nobody does or has done: those that are new, and those that failed."""
        with self.storage.claiming():
            live = self._live(self.storage.trials())
            self._add([id for id in self.cells if not live.get(id)])

    def claim(self, worker: str) -> Claim | None:
        """The next cell, or None where none waits now; dead workers' cells wait again.

        Args:
            worker: who claims it, for people.
        """
        with self.storage.claiming():
            trials = self.storage.trials()
            if self._bury(trials):
                trials = self.storage.trials()
            for trial in trials:
                if trial.state != TrialState.WAITING or trial.user_attrs.get(CELL) not in self.cells:
                    continue
                trial_id = self._id(trial)
                if not self._set_state(trial_id, TrialState.RUNNING):
                    continue  # another process was faster
                if self._is_surplus(trial):
                    self._set_state(trial_id, TrialState.PRUNED)
                    continue
                self.storage.backend.set_trial_user_attr(trial_id, WORKER, worker)
                return Claim(self.cells[trial.user_attrs[CELL]], trial_id)
        return None

    def alive(self, claim: Claim) -> "Alive":
        """Around the work on a cell."""
        return Alive(self, claim)

    def finish(self, claim: Claim, report: Mapping[str, Any], failed: Mapping[str, str]) -> bool:
        """Report a cell.

        Args:
            claim: the cell.
            report: plain data.
            failed: what went wrong, by method; where anything did, the same command does it once more.

        Returns:
            Whether it counts: not where others took this worker for dead.
        """
        try:
            self.storage.backend.set_trial_user_attr(claim.trial_id, REPORT, dict(report))
            if failed:
                self.storage.backend.set_trial_user_attr(claim.trial_id, FAILED, dict(failed))
        except UpdateFinishedTrialError:
            return False
        state = TrialState.FAIL if failed else TrialState.COMPLETE
        return self._set_state(claim.trial_id, state, None if failed else [float(report["value"])])

    def is_over(self) -> bool:
        """Whether no cell waits or is being done."""
        states = (TrialState.WAITING, TrialState.RUNNING)
        return not any(trial.user_attrs.get(CELL) in self.cells for trial in self.storage.trials(states))

    def by_cell(self) -> dict[str, FrozenTrial]:
        """The trial that says most of each cell: the first that was completed, or else the last that failed."""
        found: dict[str, FrozenTrial] = {}
        for trial in self.storage.trials():
            known = found.get(cell := trial.user_attrs.get(CELL, ""))
            if not cell or trial.state not in _TOLD:
                continue
            # Of those completed the first counts, of the failed ones the last.
            last = known is not None and known.state == trial.state == TrialState.FAIL
            if known is None or _TOLD.index(trial.state) > _TOLD.index(known.state) or last:
                found[cell] = trial
        return found

    def _bury(self, trials: Sequence[FrozenTrial]) -> bool:
        """Cells whose workers were not heard of for too long wait again; whether there were any."""
        now, dead = time.monotonic(), []
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            beat, since = int(trial.user_attrs.get(BEAT, -1)), now
            known = self._seen.get(trial.number)
            if known is not None and known[0] == beat:
                since = known[1]
            self._seen[trial.number] = beat, since
            if now - since > self.beat_seconds * self.patience:
                dead.append(trial)
        live = self._live(trials)
        for trial in dead:
            if self._set_state(self._id(trial), TrialState.FAIL):
                live[trial.user_attrs.get(CELL, "")].remove(trial.number)
        # Also those whose trial somebody buried and did not live to replace.
        lost = [id for id in self.cells if not live.get(id) and not self._was_reported(trials, id)]
        self._add(lost)
        return bool(lost)

    def _was_reported(self, trials: Sequence[FrozenTrial], id: str) -> bool:
        """Whether a cell failed by itself: that is not repeated before somebody gives the command again."""
        last = max((t for t in trials if t.user_attrs.get(CELL) == id), key=lambda t: t.number, default=None)
        return last is not None and FAILED in last.user_attrs

    def _is_surplus(self, trial: FrozenTrial) -> bool:
        """Whether its cell has another trial that goes before it: two processes may have added one each."""
        return any(
            other.number != trial.number
            and other.user_attrs.get(CELL) == trial.user_attrs[CELL]
            and (other.state == TrialState.COMPLETE or (other.state in _LIVE and other.number < trial.number))
            for other in self.storage.trials()
        )

    def _add(self, ids: Sequence[str]) -> None:
        for id in ids:
            # Not as parameters, whose values Optuna fixes with the first trial: seeds and methods may be added.
            waiting = create_trial(state=TrialState.WAITING, user_attrs={**self.cells[id].params, CELL: id})
            self.storage.backend.create_new_trial(self.storage.study_id, template_trial=waiting)

    def _live(self, trials: Sequence[FrozenTrial]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for trial in trials:
            if trial.state in _LIVE:
                found.setdefault(trial.user_attrs.get(CELL, ""), []).append(trial.number)
        return found

    def _id(self, trial: FrozenTrial) -> int:
        return self.storage.backend.get_trial_id_from_study_id_trial_number(self.storage.study_id, trial.number)

    def _set_state(self, trial_id: int, state: TrialState, values: list[float] | None = None) -> bool:
        try:
            return self.storage.backend.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False


class Alive:
    """While it is open, a thread says that the worker of a claimed cell is alive."""

    def __init__(self, queue: Queue, claim: Claim) -> None:
        self._queue, self._claim, self._over = queue, claim, Event()
        self._thread = Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        beat, backend = 0, self._queue.storage.backend
        # Whoever was taken for dead works on: what it has done, it finds again.
        with suppress(UpdateFinishedTrialError):
            while not self._over.wait(self._queue.beat_seconds):
                beat += 1
                with suppress(StorageInternalError):  # a server that is away for a moment
                    backend.set_trial_user_attr(self._claim.trial_id, BEAT, beat)
