"""Fitting model and guide by stochastic variational inference."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import default_data_collator, get_linear_schedule_with_warmup

from bayes_lora.checks import require_count, require_fraction, require_non_negative, require_positive
from bayes_lora.errors import DataError, NonFiniteLossError
from bayes_lora.inference.objective import ItemizedELBO
from bayes_lora.inference.randomness import seeded
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
        weight_decay: on the network's parameters; never on alpha and v.
        warmup_ratio: part of the steps over which the learning rates rise; they then fall linearly to zero.
        max_grad_norm: gradients are clipped to this norm over all parameters together.
        seed: of the order of examples, dropout and the posterior draws.
        log_every: steps between entries of the history.
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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_every"):
            require_count(name, getattr(self, name))
        for name in ("learning_rate", "posterior_learning_rate", "max_grad_norm"):
            require_positive(name, getattr(self, name))
        require_fraction("warmup_ratio", self.warmup_ratio)
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
) -> FitResult:
    """Minimize the objective over model and guide: AdamW, linear warm-up and decay, gradient clipping.

    Everything in the network that requires a gradient is trained, and everything in the guide.

    Args:
        model: the model; it is left in evaluation mode.
        guide: its guide.
        train_dataset: examples with `labels`, as `collate` takes them.
        options: see `FitOptions`.
        collate: makes a batch of a list of examples, for example transformers' DataCollatorWithPadding.
        console: where the progress bar goes; None shows none.

    Raises:
        DataError: no examples, or examples without labels.
        NonFiniteLossError: a term of the loss became NaN or infinite; names the step and the term.

    Example:
        >>> result = fit(model, guide, dataset, FitOptions(epochs=1))  # doctest: +SKIP
    """
    options = options or FitOptions()
    _check_dataset(train_dataset)
    device = model.sites.example.device
    loader: DataLoader[Any] = DataLoader(
        train_dataset,  # type: ignore[arg-type]
        batch_size=options.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(options.seed),
        collate_fn=collate,
    )
    num_steps = options.epochs * len(loader)
    optimizer = _optimizer(model, guide, options)
    schedule = get_linear_schedule_with_warmup(optimizer, round(options.warmup_ratio * num_steps), num_steps)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    elbo = ItemizedELBO()
    loss_of = elbo(model, guide)
    ledger = _Ledger()
    result = FitResult()
    started = time.perf_counter()
    model.train()
    with seeded(options.seed, device), _progress(console) as progress:
        task = progress.add_task("fit", total=num_steps, terms="")
        step = 0
        for epoch in range(options.epochs):
            for batch in loader:
                step += 1
                loss = loss_of(**{name: value.to(device) for name, value in batch.items()})
                loss.backward()
                ledger.add(step, elbo.terms)
                nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                if step % options.log_every == 0 or step == num_steps:
                    entry = {
                        "step": step,
                        "epoch": epoch + 1,
                        "learning_rate": schedule.get_last_lr()[0],
                        **ledger.close(),
                    }
                    result.history.append(entry)
                    progress.update(task, terms=_describe(entry))
                schedule.step()
                progress.advance(task)
    model.eval()
    result.seconds = time.perf_counter() - started
    return result


def _check_dataset(dataset: Any) -> None:
    if len(dataset) == 0:
        raise DataError("the training set is empty. Pass a dataset with at least one labelled example.")
    example = dataset[0]
    if "labels" not in example and "label" not in example:
        raise DataError(f"the training examples have no labels, only {sorted(example)}. Add a 'labels' column.")


def _optimizer(model: BayesianLoRA, guide: nn.Module, options: FitOptions) -> torch.optim.AdamW:
    network = [parameter for parameter in model.parameters() if parameter.requires_grad]
    posterior = [parameter for parameter in guide.parameters() if parameter.requires_grad]
    groups = [
        {"params": network, "lr": options.learning_rate, "weight_decay": options.weight_decay},
        {"params": posterior, "lr": options.posterior_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


class _Ledger:
    """Mean of each loss term since the last entry, kept on the device: reading a number every step would stall it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._bad_step: dict[str, Tensor] = {}
        self._count = 0

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        self._count += 1
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            before = self._bad_step.setdefault(name, torch.zeros((), dtype=torch.long, device=value.device))
            self._bad_step[name] = torch.where((before == 0) & ~torch.isfinite(value), step, before)

    def close(self) -> dict[str, float]:
        """The means, with their sum as `loss`; starts a new entry."""
        bad = {name: int(first) for name, first in self._bad_step.items() if first > 0}
        if bad:
            step = min(bad.values())
            names = ", ".join(name for name, first in bad.items() if first == step)
            raise NonFiniteLossError(
                f"the loss became NaN or infinite at step {step}, in the term(s) {names}. Lower the learning rate "
                "(learning_rate for nll, posterior_learning_rate for the KLs), or look for NaN in the inputs."
            )
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return {"loss": sum(means.values()), **means}


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[terms]}"),
        console=console,
        disable=console is None,
    )


_SHORT = {"nll": "nll", "cooperative": "coop", "kl_dirichlet": "KL_D", "kl_wishart": "KL_W", "kl_normal": "KL_N"}


def _describe(entry: dict[str, float]) -> str:
    return " ".join(f"{short} {entry[name]:.2g}" for name, short in _SHORT.items() if name in entry)
