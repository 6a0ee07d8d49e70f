"""Fitting model and guide by stochastic variational inference."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, default_data_collator

from bayes_lora.choices import Phase
from bayes_lora.errors import ConfigurationError, DataError, NonFiniteLossError
from bayes_lora.inference.training.callbacks import Clock
from bayes_lora.inference.training.fit_options import FitOptions
from bayes_lora.inference.training.likelihood_trainer import LikelihoodTrainer
from bayes_lora.inference.training.progress import Display, history_entry, progress_bar
from bayes_lora.inference.training.sealed_trainer import SealedTrainer
from bayes_lora.inference.training.trainable import require_trainable
from bayes_lora.inference.training.trainer import SVITrainer
from bayes_lora.inference.training.training_rows import count_training_rows
from bayes_lora.models import BayesianLoRA, Classification, LikelihoodNetwork
from bayes_lora.randomness import Part, seeded

Collate = Callable[[list[Any]], dict[str, Any]]


@dataclass
class FitResult:
    """What training left behind besides the parameters.

    Attributes:
        history: one entry per `log_every` steps: step, epoch, learning_rate, loss, and the terms that sum to it,
            each the mean over the steps since the entry before.
        seconds: wall-clock time of training; of a resumed one, with that until the checkpoint it went on from.
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
    Everything in the network that requires a gradient is trained, unless `options.phases` says otherwise, and
    everything in the guide.

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
        DataError: no examples, or examples without labels; a dataset without a length.
        NonFiniteLossError: a term of the loss became NaN or infinite; names the step and the term.
        ConfigurationError: the configuration's `num_train_examples` is not the number of examples; where it is None it
            is set to that. Or the adapters are frozen, and not the posterior alone is to be learned.

    Example:
        >>> result = fit(model, guide, dataset, FitOptions(epochs=1))  # doctest: +SKIP
    """
    options = options or FitOptions()
    num_steps = _num_steps(train_dataset, options)
    count_training_rows(model, train_dataset)
    training = _Training(train_dataset, options, collate, console, model.sites.example.device)
    if options.phases == "joint":
        return training.of_both(model, guide, num_steps, checkpoints)
    if options.phases == "posterior":
        return training.of_both(model, guide, num_steps, checkpoints, "posterior")
    if num_steps < 2:
        raise ConfigurationError(
            f"phases='means_then_posterior' needs at least two steps, and there are {num_steps}: more epochs or a "
            "smaller batch_size give more."
        )
    first = num_steps // 2
    # The network's own loss is that of classes; any other is the likelihood's.
    network = model.network
    if type(model.likelihood) is not Classification:
        network = LikelihoodNetwork(model.network, model.likelihood)
    # Where the second phase was interrupted, this only loads what the first one ended with.
    means = training.of_network(network, first, checkpoints and checkpoints / "means")
    of_posterior = checkpoints and checkpoints / "posterior"
    posterior = training.of_both(model, guide, num_steps - first, of_posterior, "posterior")
    later = [{**entry, "step": entry["step"] + first} for entry in posterior.history]
    return FitResult([*means.history, *later], means.seconds + posterior.seconds)


def fit_network(
    network: nn.Module,
    train_dataset: Dataset[Any] | Sequence[Any],
    options: FitOptions | None = None,
    *,
    collate: Collate = default_data_collator,
    console: Console | None = None,
    checkpoints: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    optimizer: torch.optim.Optimizer | None = None,
) -> FitResult:
    """Train a network on its own loss, without a posterior: the point estimate, with the settings of `fit`.

    Any transformers or PEFT model with a task head, or a `LikelihoodNetwork`; what requires a gradient is trained.
    Arguments and errors are those of `fit`; options of the posterior do nothing here. `callbacks` are the Trainer's:
    what must accompany the training of this network. `optimizer` takes the place of AdamW, with a learning rate and a
    weight decay of its own; the schedule multiplies its learning rate.
    """
    options = options or FitOptions()
    num_steps = _num_steps(train_dataset, options)
    device = next(network.parameters()).device
    training = _Training(train_dataset, options, collate, console, device)
    return training.of_network(network, num_steps, checkpoints, callbacks, optimizer)


@dataclass(frozen=True)
class _Training:
    """What the phases of a fit have in common."""

    dataset: Any
    options: FitOptions
    collate: Collate
    console: Console | None
    device: torch.device

    def of_both(
        self,
        model: BayesianLoRA,
        guide: nn.Module,
        num_steps: int,
        checkpoints: Path | None,
        phase: Phase = "joint",
    ) -> FitResult:
        """Train everything in model and guide that requires a gradient, or in the guide alone, on the objective."""
        schedule = self.options.new_schedule()
        options = self.options
        own: dict[str, Any] = {
            "posterior_learning_rate": options.posterior_learning_rate,
            "likelihood_learning_rate": options.likelihood_learning_rate,
            "phase": phase,
            # Of a frozen network there is none to learn.
            "head_learning_rate": options.head_learning_rate if phase == "joint" else None,
        }

        def build(**common: Any) -> SVITrainer:
            schedule_on_device = None if schedule is None else schedule.to(self.device)
            return SVITrainer(model, guide, scale_schedule=schedule_on_device, **own, **common)

        result = self._run(build, "fit", num_steps, checkpoints)
        model.clear_perturbation()
        _check_finite(model, guide)
        model.eval()
        return result

    def of_network(
        self,
        network: nn.Module,
        num_steps: int,
        checkpoints: Path | None,
        callbacks: Sequence[TrainerCallback] = (),
        optimizer: torch.optim.Optimizer | None = None,
    ) -> FitResult:
        """Train everything in the network that requires a gradient, on its own loss."""
        require_trainable(network)
        build: Callable[..., SealedTrainer] = partial(SealedTrainer, network)
        if isinstance(network, LikelihoodNetwork):
            rate = self.options.likelihood_learning_rate
            build = partial(LikelihoodTrainer, network, likelihood_learning_rate=rate)
        build = partial(build, optimizers=(optimizer, None), head_learning_rate=self.options.head_learning_rate)
        result = self._run(build, "fit network", num_steps, checkpoints, callbacks)
        _check_finite(network)
        network.eval()
        return result

    def _run(
        self,
        build: Callable[..., SealedTrainer],
        what: str,
        num_steps: int,
        checkpoints: Path | None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> FitResult:
        clock = Clock()
        bar = progress_bar(self.console)
        with seeded(self.options.seed, self.device), TemporaryDirectory() as scratch, bar as progress:
            trainer = build(
                weight_decay_of=self.options.weight_decay_of,
                args=self._arguments(checkpoints or Path(scratch), num_steps, saves=checkpoints is not None),
                train_dataset=self.dataset,
                data_collator=self.collate,
                callbacks=[*callbacks, clock, Display(progress, what, num_steps)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=checkpoints is not None)
            # Under bf16 accelerate puts autocast around the network's own forward, and leaves it there.
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        history = [history_entry(logs) for logs in trainer.state.log_history if "loss" in logs]
        return FitResult(history, clock.seconds)

    def _arguments(self, folder: Path, num_steps: int, *, saves: bool) -> TrainingArguments:
        options = self.options
        return TrainingArguments(
            str(folder),
            max_steps=num_steps,
            per_device_train_batch_size=options.micro_batch_size or options.batch_size,
            gradient_accumulation_steps=options.batch_size // (options.micro_batch_size or options.batch_size),
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            warmup_steps=round(options.warmup_ratio * num_steps),
            max_grad_norm=options.max_grad_norm,
            seed=options.seed,
            data_seed=options.seed_of(Part.ORDER),
            logging_steps=options.log_every,
            save_strategy="steps" if saves else "no",
            save_steps=options.save_every,
            save_total_limit=options.keep_checkpoints,
            bf16=options.precision == "bfloat16",
            train_sampling_strategy="group_by_length" if options.group_by_length else "random",
            lr_scheduler_type="linear" if options.decay == "linear" else "constant_with_warmup",
            report_to="none",
            disable_tqdm=True,
            use_cpu=self.device.type == "cpu",
            dataloader_pin_memory=self.device.type != "cpu",
        )


def _num_steps(dataset: Any, options: FitOptions) -> int:
    _check_dataset(dataset)
    return options.epochs * math.ceil(len(dataset) / options.batch_size)


def _check_dataset(dataset: Any) -> None:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"a {type(dataset).__name__} has no length or no order of its own, by which epochs are counted and rows "
            "shuffled. Pass a list or a datasets.Dataset; for a stream of rows use SVITrainer with "
            "TrainingArguments(max_steps=...), and for objective='elbo' say num_train_examples."
        )
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
