"""Fitting model and guide by stochastic variational inference."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from bayes_lora.checks import require_count, require_fraction, require_non_negative, require_positive, require_seed
from bayes_lora.errors import DataError, NonFiniteLossError
from bayes_lora.inference.objective import TERMS
from bayes_lora.inference.randomness import seeded
from bayes_lora.inference.trainer import SVITrainer
from bayes_lora.models import BayesianLoRA

Collate = Callable[[list[Any]], dict[str, Any]]


@dataclass(frozen=True)
class FitOptions:
    """How `fit` trains.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples a step.
        learning_rate: of LoRA-A's mean, LoRA-B and the task head, at its peak.
        posterior_learning_rate: of log alpha and log v, at its peak.
        weight_decay: on the network's matrices; never on biases, alpha and v.
        warmup_ratio: part of the steps over which the learning rates rise; they then fall linearly to zero.
        max_grad_norm: gradients are clipped to this norm over all parameters together.
        seed: of the order of examples, dropout and the posterior draws.
        log_every: steps between entries of the history.
        save_every: steps between checkpoints, where they are kept.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 3e-4
    posterior_learning_rate: float = 1e-2
    weight_decay: float = 0.0
    warmup_ratio: float = 0.06
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every: int = 10
    save_every: int = 100

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_every", "save_every"):
            require_count(name, getattr(self, name))
        for name in ("learning_rate", "posterior_learning_rate", "max_grad_norm"):
            require_positive(name, getattr(self, name))
        require_fraction("warmup_ratio", self.warmup_ratio)
        require_seed("seed", self.seed)
        require_non_negative("weight_decay", self.weight_decay)


@dataclass
class FitResult:
    """What training left behind besides the parameters.

    Attributes:
        history: one entry per `log_every` steps: step, epoch, learning_rate, loss, and the terms that sum to it,
            each the mean over the steps since the entry before.
        seconds: wall-clock time of training.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def fit(
    model: BayesianLoRA,
    guide: nn.Module,
    train_dataset: Dataset[Any] | Sequence[Any],
    options: FitOptions | None = None,
    *,
    collate: Collate = default_data_collator,
    console: Console | None = None,
    checkpoints: Path | None = None,
) -> FitResult:
    """Minimize the objective over model and guide: AdamW, linear warm-up and decay, gradient clipping.

    `SVITrainer` with the settings most fits need; the caller's generators are left as they were.
    Everything in the network that requires a gradient is trained, and everything in the guide.

    Args:
        model: the model; it is left in evaluation mode.
        guide: its guide.
        train_dataset: examples with `labels`, as `collate` takes them.
        options: see `FitOptions`.
        collate: makes a batch of a list of examples, for example transformers' DataCollatorWithPadding.
        console: where the progress bar goes; None shows none.
        checkpoints: folder for a checkpoint every `save_every` steps. Where it holds a whole one of an earlier,
            interrupted fit with the same arguments, training goes on from there, to the same end bit for bit on the
            CPU with the same number of threads. None writes nothing.

    Raises:
        DataError: no examples, or examples without labels.
        NonFiniteLossError: a term of the loss became NaN or infinite; names the step and the term.

    Example:
        >>> result = fit(model, guide, dataset, FitOptions(epochs=1))  # doctest: +SKIP
    """
    options = options or FitOptions()
    _check_dataset(train_dataset)
    device = model.sites.example.device
    num_steps = options.epochs * math.ceil(len(train_dataset) / options.batch_size)  # type: ignore[arg-type]
    started = time.perf_counter()
    with seeded(options.seed, device), TemporaryDirectory() as scratch, _progress(console) as progress:
        arguments = TrainingArguments(
            scratch if checkpoints is None else str(checkpoints),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            warmup_steps=round(options.warmup_ratio * num_steps),
            max_grad_norm=options.max_grad_norm,
            seed=options.seed,
            logging_steps=options.log_every,
            save_strategy="no" if checkpoints is None else "steps",
            save_steps=options.save_every,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type != "cpu",
        )
        trainer = SVITrainer(
            model,
            guide,
            arguments,
            posterior_learning_rate=options.posterior_learning_rate,
            train_dataset=train_dataset,
            data_collator=collate,
            callbacks=[_Display(progress, num_steps)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=checkpoints is not None)
    model.eval()
    model.clear_perturbation()
    _check_finite(model, guide)
    history = [_entry(logs) for logs in trainer.state.log_history if "loss" in logs]
    return FitResult(history, time.perf_counter() - started)


def _check_dataset(dataset: Any) -> None:
    if len(dataset) == 0:
        raise DataError("the training set is empty. Pass a dataset with at least one labelled example.")
    example = dataset[0]
    if "labels" not in example and "label" not in example:
        raise DataError(f"the training examples have no labels, only {sorted(example)}. Add a 'labels' column.")


def _check_finite(*modules: nn.Module) -> None:
    """The last update comes after the last loss, so its outcome is looked at apart."""
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise NonFiniteLossError(
                    f"{name} is NaN or infinite after the last step. Lower the learning rate, or look for NaN in the "
                    "inputs."
                )


class _Display(TrainerCallback):
    """Moves the progress bar, and has the last step logged, whatever its number."""

    def __init__(self, progress: Progress, num_steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task("fit", total=num_steps, terms="")

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.advance(self._task)
        control.should_log = control.should_log or state.global_step == state.max_steps

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._progress.update(self._task, terms=_describe(logs))


def _entry(logs: dict[str, float]) -> dict[str, float]:
    first = ("step", "epoch", "learning_rate", "loss")
    return {name: logs[name] for name in (*first, *TERMS.values()) if name in logs}


def _progress(console: Console | None) -> Progress:
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
    """The terms in few characters: 0.43, 2e-6."""
    shown = (
        f"{short} {entry[name]:.2f}" if abs(entry[name]) > 0.01 else f"{short} {entry[name]:.0e}".replace("e-0", "e-")
        for name, short in _SHORT.items()
        if name in entry
    )
    return " ".join(shown)
