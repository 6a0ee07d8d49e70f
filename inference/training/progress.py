"""What a fit shows while it runs, and the history it leaves."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from transformers import TrainerCallback, TrainerControl, TrainerState

from bayes_lora.models.bayesian_lora import LOSS_TERMS


class Display(TrainerCallback):
    """Moves the progress bar, and has the last step logged, whatever its number."""

    def __init__(self, progress: Progress, what: str, num_steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=num_steps, terms="")

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.advance(self._task)
        control.should_log = control.should_log or state.global_step == state.max_steps

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._progress.update(self._task, terms=_describe(logs))


def history_entry(logs: dict[str, float]) -> dict[str, float]:
    first = ("step", "epoch", "learning_rate", "loss")
    return {name: logs[name] for name in (*first, *LOSS_TERMS.values()) if name in logs}


def progress_bar(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("left"),
        TextColumn("{task.fields[terms]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        disable=console is None,
    )


_SHORT = {"nll": "nll", "cooperative": "coop", "kl_dirichlet": "KL D", "kl_wishart": "W", "kl_normal": "N"}


def _describe(entry: dict[str, float]) -> str:
    """The terms that are not 0, in few characters: 0.43, 2e-6; of a loss without terms, the loss."""
    shown = (
        f"{short} {entry[name]:.2f}" if abs(entry[name]) > 0.01 else f"{short} {entry[name]:.0e}".replace("e-0", "e-")
        for name, short in _SHORT.items()
        if entry.get(name)
    )
    return " ".join(shown) or f"loss {entry['loss']:.2f}"
