"""Runs: one fit with all that is needed to repeat it, in one folder."""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError, DataError, RunExistsError
from bayes_lora.experiments.base_models import load_base_model, lora_targets
from bayes_lora.experiments.rows import Row, read_rows, write_jsonl, write_whole
from bayes_lora.experiments.sources import RowsSource, digest
from bayes_lora.experiments.tasks import Task, TaskRows, encode
from bayes_lora.inference import (
    FitOptions,
    FitResult,
    MonteCLoRAGuide,
    Prediction,
    evaluate,
    fit,
    load_posterior,
    predict,
    save_posterior,
)
from bayes_lora.inference.randomness import seeded
from bayes_lora.models import BayesianLoRA

METHODS = ("monteclora", "monteclora_sparse")
CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE = "config.json", "metrics.json", "predictions.jsonl"
HISTORY_FILE, ENVIRONMENT_FILE = "history.jsonl", "environment.json"
POSTERIOR_FOLDER, CHECKPOINTS_FOLDER = "posterior", "checkpoints"
_RECORDED = ("bayes-lora", "torch", "pyro-ppl", "transformers", "peft", "datasets", "numpy")


@dataclass(frozen=True)
class LoRAOptions:
    """The LoRA adapter itself: rank, alpha, dropout, and which modules (see `lora_targets`)."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: str = "attention"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ConfigurationError(
                f"rank={self.rank} and alpha={self.alpha} must be at least 1, dropout={self.dropout} in [0, 1)."
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that a fit depends on besides its rows and its environment."""

    task: Task
    base_model: str
    method: str = "monteclora"
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    posterior: MonteCLoRAConfig = field(default_factory=MonteCLoRAConfig)
    training: FitOptions = field(default_factory=FitOptions)
    num_samples: int = 32
    max_length: int | None = None
    source: RowsSource | None = None
    rows_digest: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `from_json` makes the same configuration."""
        return {**asdict(self), "task": self.task.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunConfig":
        parts = {
            "task": Task.from_json(data["task"]),
            "lora": LoRAOptions(**data["lora"]),
            "posterior": MonteCLoRAConfig(**data["posterior"]),
            "training": FitOptions(**data["training"]),
            "source": None if data["source"] is None else _source(data["source"]),
        }
        return cls(**{**data, **parts})


@dataclass(frozen=True)
class Run:
    """A fitted model with what is needed to use it."""

    config: RunConfig
    model: BayesianLoRA
    guide: MonteCLoRAGuide
    tokenizer: PreTrainedTokenizerBase

    def loader(self, rows: Sequence[Row], *, with_labels: bool) -> "DataLoader[Any]":
        """Padded batches of rows, in order."""
        config = self.config
        data = encode(config.task, list(rows), self.tokenizer, max_length=config.max_length, with_labels=with_labels)
        collate = DataCollatorWithPadding(self.tokenizer)
        return DataLoader(data, batch_size=config.training.batch_size, collate_fn=collate)

    def predict(
        self,
        rows: Sequence[Row],
        *,
        with_labels: bool,
        num_samples: int | None = None,
        at_mean: bool = False,
        console: Console | None = None,
    ) -> Prediction:
        """Predict rows under the run's seed and number of draws, unless another number is given."""
        num_samples = num_samples or self.config.num_samples
        loader = self.loader(rows, with_labels=with_labels)
        what = "predict at the mean" if at_mean else f"predict with {num_samples} draws"
        shown = console is not None and console.is_terminal
        batches = track(loader, what, console=console, transient=True) if shown else loader
        seed = self.config.training.seed
        return predict(self.model, self.guide, batches, num_samples=num_samples, seed=seed, at_mean=at_mean)


def new_run(config: RunConfig) -> Run:
    """A base model with a new head and new adapters, and its posterior at the start; the same for the same seed."""
    with seeded(config.training.seed, torch.device("cpu")):
        network, tokenizer = load_base_model(config.base_model, config.task.label_names)
        options = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=lora_targets(network, config.lora.targets),
        )
        model = BayesianLoRA(peft.get_peft_model(network, options), config.posterior)
        return Run(config, model, MonteCLoRAGuide(model), tokenizer)


def train(run: Run, rows: Sequence[Row], console: Console | None = None, checkpoints: Path | None = None) -> FitResult:
    """Fit the run on labelled rows, from the newest whole checkpoint where there is one."""
    data = encode(run.config.task, list(rows), run.tokenizer, max_length=run.config.max_length)
    collate = DataCollatorWithPadding(run.tokenizer)
    return fit(
        run.model, run.guide, data, run.config.training, collate=collate, console=console, checkpoints=checkpoints
    )


def fit_run(config: RunConfig, rows: TaskRows, out: Path, *, overwrite: bool, console: Console) -> dict[str, Any]:
    """Fit, evaluate and save a run into `out`; returns its metrics.

    Raises:
        RunExistsError: `out` exists and `overwrite` was not said.
    """
    claim_folder(out, overwrite=overwrite)
    config = replace(config, rows_digest=digest(rows))
    write_json(out / CONFIG_FILE, config.to_json())
    return _complete(config, rows, out, console)


def resume_run(out: Path, *, console: Console) -> dict[str, Any]:
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
    return _complete(config, rows, out, console)


def _complete(config: RunConfig, rows: TaskRows, out: Path, console: Console) -> dict[str, Any]:
    """Train from wherever the run is, evaluate, save; the metrics are written last."""
    write_json(out / ENVIRONMENT_FILE, environment())
    run = new_run(config)
    result = train(run, rows.train, console, out / CHECKPOINTS_FOLDER)
    write_jsonl(out / HISTORY_FILE, result.history)
    save_posterior(run.model, run.guide, out / POSTERIOR_FOLDER, overwrite=True)
    point = run.predict(rows.validation, with_labels=True, at_mean=True, console=console)
    predictive = run.predict(rows.validation, with_labels=True, console=console)
    write_jsonl(out / PREDICTIONS_FILE, described_rows(config.task, rows.validation, predictive, point))
    assert predictive.labels is not None
    metrics = {
        "point": evaluate(point.mean_probs, predictive.labels),
        "posterior_predictive": evaluate(predictive.mean_probs, predictive.labels),
        "num_train": len(rows.train),
        "num_validation": len(rows.validation),
        "num_samples": config.num_samples,
        "train_seconds": round(result.seconds, 3),
    }
    write_json(out / METRICS_FILE, metrics)
    shutil.rmtree(out / CHECKPOINTS_FOLDER, ignore_errors=True)
    return metrics


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        DataError: no run there.
    """
    path = folder / CONFIG_FILE
    try:
        return RunConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{folder} is not a run: {path.name} is missing or damaged ({error}). "
            "Give a folder that 'bayes-lora fit --out' wrote."
        ) from error


def load_run(folder: Path) -> Run:
    """Open a run folder that `fit_run` finished.

    Raises:
        DataError: no run there.
        PosteriorFileError: its posterior is missing or damaged.
    """
    config = read_config(folder)
    # The head is replaced by the saved one; whatever else the checkpoint lacks starts as it did in the fit.
    with seeded(config.training.seed, torch.device("cpu")):
        network, tokenizer = load_base_model(config.base_model, config.task.label_names)
    model, guide = load_posterior(network, folder / POSTERIOR_FOLDER)
    return Run(config, model, guide, tokenizer)


def own_rows(folder: Path, task: Task) -> list[Row]:
    """The rows a run was evaluated on, as its predictions file keeps them."""
    return [
        {name: row[name] for name in (*task.columns, task.label_column)} for row in read_rows(folder / PREDICTIONS_FILE)
    ]


def described_rows(
    task: Task, rows: Sequence[Row], predictive: Prediction, point: Prediction | None = None
) -> list[Row]:
    """Each row with its predicted class, probabilities by class name, and entropies in nats."""
    described = []
    for index, row in enumerate(rows):
        probs = predictive.mean_probs[index]
        entry = {
            **row,
            "prediction": task.label_names[int(probs.argmax())],
            "probs": dict(zip(task.label_names, probs.tolist(), strict=True)),
            "total_entropy": predictive.total_entropy[index].item(),
            "aleatoric_entropy": predictive.aleatoric_entropy[index].item(),
            "mutual_information": predictive.mutual_information[index].item(),
        }
        if point is not None:
            entry["point_probs"] = dict(zip(task.label_names, point.mean_probs[index].tolist(), strict=True))
        described.append(entry)
    return described


def _source(data: Mapping[str, Any]) -> RowsSource:
    return RowsSource(**{**data, "text_columns": tuple(data["text_columns"])})


def environment() -> dict[str, Any]:
    """What the numbers of a run may depend on besides its configuration."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in _RECORDED},
    }


def claim_folder(folder: Path, *, overwrite: bool) -> None:
    """Make an empty folder for a run.

    Raises:
        RunExistsError: it exists and `overwrite` was not said, or it is not a run that may be deleted.
    """
    if folder.exists():
        if not overwrite:
            raise RunExistsError(f"{folder} exists already. Choose another --out, or say --overwrite to replace it.")
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file()):
            raise RunExistsError(f"{folder} is no run folder, so --overwrite will not delete it. Choose another --out.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(path, (json.dumps(data, indent=2) + "\n").encode())
