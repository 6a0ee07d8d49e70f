"""Runs: one fit with all that is needed to repeat it, in one folder."""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, DataError, RunExistsError
from bayes_lora.experiments.inputs.inputs import Encoded
from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.experiments.networks.trained_adapter import TrainedAdapter, load_adapter
from bayes_lora.experiments.rows.rows import Row, write_jsonl
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.experiments.runs.machine import environment
from bayes_lora.experiments.runs.outputs import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    POSTERIOR_FOLDER,
    PREDICTIONS_FILE,
    check_folder,
    claim_folder,
)
from bayes_lora.experiments.runs.predictions import described_rows
from bayes_lora.experiments.runs.run_card import write_run_card
from bayes_lora.experiments.runs.run_config import RunConfig, read_config
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.sources import digest
from bayes_lora.experiments.tasks.tasks import TaskRows
from bayes_lora.files import write_json
from bayes_lora.inference import (
    FitOptions,
    FitResult,
    LoRAGuide,
    Prediction,
    fit,
    load_posterior,
    predict,
    save_posterior,
)
from bayes_lora.inference.finetuning.lora import add_lora
from bayes_lora.inference.guides.draw_design import draws_text
from bayes_lora.inference.guides.lora_guide import guide_kinds
from bayes_lora.inference.storage.posterior_files import SavedKind
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import Part, seeded


@dataclass(frozen=True)
class Run:
    """A fitted model with what is needed to use it: its processor is the tokenizer, or what else makes its inputs."""

    config: RunConfig
    model: BayesianLoRA
    guide: LoRAGuide
    processor: Any

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.sites.example.device

    def encode(self, rows: Sequence[Row], *, with_labels: bool = True) -> Encoded:
        """The rows as this run's network reads them."""
        config = self.config
        return encode(config.task, list(rows), self.processor, max_length=config.max_length, with_labels=with_labels)

    def predict(
        self,
        data: Encoded,
        *,
        num_samples: int | Literal["auto"] | None = None,
        draws: Draws | None = None,
        at_mean: bool = False,
        console: Console | None = None,
    ) -> Prediction:
        """Predict encoded rows under the run's seed, and its number and kind of draws unless others are given."""
        if num_samples is None:
            num_samples = self.config.num_samples
        training = self.config.training
        collate = self.config.task.family.inputs.collate(self.processor)
        size = training.micro_batch_size or training.batch_size
        loader: DataLoader[Any] = DataLoader(data, batch_size=size, collate_fn=collate)
        what = "predict at the mean" if at_mean else f"predict with {draws_text(num_samples)}"
        shown = console is not None and console.is_terminal
        batches = track(loader, what, console=console, transient=True) if shown else loader
        return predict(
            self.model,
            self.guide,
            batches,
            num_samples=num_samples,
            draws=draws or self.config.draws,
            seed=training.seed,
            at_mean=at_mean,
        )


def new_run(config: RunConfig, device: torch.device = CPU) -> Run:
    """A base model with its posterior at the start, on a device; the same for the same seed, whatever the device.

    Head and adapters are new, or those of a trained adapter.
    """
    training = config.training
    with seeded(training.seed_of(Part.HEAD), CPU):
        base = load_base_model(config.base_model, config.task.label_names, config.task.task_type)
        with _own_stream(training, Part.ADAPTERS):
            if isinstance(config.lora, TrainedAdapter):
                network = load_adapter(base, config.lora)
            else:
                network = add_lora(base.network, base.new_modules, config.lora)
        model = BayesianLoRA(network, config.posterior, config.task.family.likelihood(network, config.task.label_names))
        with _own_stream(training, Part.GUIDE):
            guide = _new_guide(model, config.guide)
    return Run(config, model.to(device), guide.to(device), base.processor)


def _new_guide(model: BayesianLoRA, guide: SavedKind) -> LoRAGuide:
    try:
        return guide_kinds()[guide.kind].from_settings(model, guide.settings)
    except TypeError as error:
        raise ConfigurationError(
            f"the guide {guide.kind!r} cannot have the settings {guide.settings}: {error}."
        ) from error


def _own_stream(training: FitOptions, part: Part) -> AbstractContextManager[None]:
    """Runs of version 0.1 drew all parts of their start from one generator, one after the other."""
    return nullcontext() if training.seeding == "shared" else seeded(training.seed_of(part), CPU)


def train(run: Run, data: Encoded, console: Console | None = None, checkpoints: Path | None = None) -> FitResult:
    """Fit the run on encoded, labelled rows, from the newest whole checkpoint where there is one.

    Its mean adapter is then at the guide's centre, whatever the guide is.
    """
    collate = run.config.task.family.inputs.collate(run.processor)
    found = fit(
        run.model, run.guide, data, run.config.training, collate=collate, console=console, checkpoints=checkpoints
    )
    run.guide.copy_median_to_adapters()
    return found


def fit_run(
    config: RunConfig, rows: TaskRows, out: Path, *, overwrite: bool, console: Console, device: torch.device = CPU
) -> dict[str, Any]:
    """Fit, evaluate and save a run into `out`; returns its metrics.

    Everything that can be wrong with model, adapters and rows is found before `out` is touched.

    Raises:
        RunExistsError: `out` exists and `overwrite` was not said.
    """
    check_folder(out, overwrite=overwrite)
    prepared = _Prepared.of(replace(config, rows_digest=digest(rows)), rows, device)
    claim_folder(out, overwrite=overwrite)
    write_json(out / CONFIG_FILE, prepared.run.config.to_json())
    return _complete(prepared, out, console)


def resume_run(out: Path, *, console: Console, device: torch.device = CPU) -> dict[str, Any]:
    """Take up a run that was interrupted, from its newest whole checkpoint, to the end it would have had.

    Raises:
        DataError: no run there, or its rows are no longer the same.
        RunExistsError: it is finished.
    """
    config = read_config(out)
    if (out / METRICS_FILE).is_file():
        raise RunExistsError(f"{out} is finished: there is nothing to resume. See {out / METRICS_FILE}.")
    if config.source is None:
        raise DataError(f"{out} does not say where its rows came from. Start it anew with --overwrite.")
    rows = config.source.load()
    if digest(rows) != config.rows_digest:
        raise DataError(
            f"the rows of {out} have changed since it was started, so it cannot be resumed. Start a new run."
        )
    return _complete(_Prepared.of(config, rows, device), out, console)


@dataclass(frozen=True)
class _Prepared:
    """A run that could be built, with rows that could be encoded."""

    run: Run
    rows: TaskRows
    train: Encoded
    validation: Encoded

    @classmethod
    def of(cls, config: RunConfig, rows: TaskRows, device: torch.device) -> "_Prepared":
        run = new_run(config, device)
        train = run.encode(rows.train)
        if run.model.likelihood.state_dict():
            run.model.likelihood.start_at(torch.tensor(train["labels"]))
        return cls(run, rows, train, run.encode(rows.validation))


def _complete(prepared: _Prepared, out: Path, console: Console) -> dict[str, Any]:
    """Train from wherever the run is, evaluate, save; the metrics are written last."""
    run, rows = prepared.run, prepared.rows
    write_json(out / ENVIRONMENT_FILE, {**environment(), "device": str(run.device)})
    result = train(run, prepared.train, console, out / CHECKPOINTS_FOLDER)
    write_jsonl(out / HISTORY_FILE, result.history)
    save_posterior(run.model, run.guide, out / POSTERIOR_FOLDER, overwrite=True)
    point = run.predict(prepared.validation, at_mean=True, console=console)
    predictive = run.predict(prepared.validation, console=console)
    write_jsonl(out / PREDICTIONS_FILE, described_rows(run.config.task, rows.validation, predictive, point))
    metrics = {
        "method": run.config.method,
        "point": run.model.likelihood.metrics(point),
        "posterior_predictive": run.model.likelihood.metrics(predictive),
        "num_train": len(rows.train),
        "num_validation": len(rows.validation),
        "num_samples": run.config.num_samples,
        "train_seconds": round(result.seconds, 3),
    }
    write_run_card(out, run.config, metrics)
    write_json(out / METRICS_FILE, metrics)
    shutil.rmtree(out / CHECKPOINTS_FOLDER, ignore_errors=True)
    return metrics


def load_run(folder: Path, device: torch.device = CPU) -> Run:
    """Open a run folder that `fit_run` finished, on a device.

    Raises:
        DataError: no run there, or an interrupted one.
        PosteriorFileError: its posterior is missing or damaged.
    """
    config = read_config(folder)
    if not (folder / METRICS_FILE).is_file():  # written last
        remedy = (
            "Start it anew with --overwrite."
            if config.source is None
            else f"'bayes-lora fit --resume {folder}' goes on with it."
        )
        raise DataError(f"{folder} is unfinished: its fit was interrupted. {remedy}")
    # What the base's checkpoint lacks is new here too, until the posterior replaces it: so the caller's generators
    # must be left as they were.
    with seeded(config.training.seed, CPU):
        base = load_base_model(config.base_model, config.task.label_names, config.task.task_type)
    model, guide = load_posterior(base.network, folder / POSTERIOR_FOLDER)
    return Run(config, model.to(device), guide.to(device), base.processor)
