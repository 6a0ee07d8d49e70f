"""From the options of `bayes-lora fit`, by name, to what they configure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.lora import LoRAOptions
from bayes_lora.experiments.run_config import METHODS, RunConfig
from bayes_lora.experiments.sources import RowsSource
from bayes_lora.experiments.tasks import TaskRows
from bayes_lora.inference import FitOptions

# Options that MonteCLoRAConfig has under the same name, and that need no reading.
_OF_POSTERIOR = (
    *("num_components", "num_outer_samples", "sample_scale", "prior_concentration", "sampler", "objective"),
    *("kl_weight", "cooperative_weight", "prior_scale", "temperature"),
)


def rows_source(given: Mapping[str, Any]) -> RowsSource:
    """Where the rows come from.

    Raises:
        TaskError, ConfigurationError: see `RowsSource`.
    """
    columns = given["text_columns"]
    return RowsSource(
        task=given["task"],
        data_dir=_resolved(given["data_dir"]),
        train_file=_resolved(given["train_file"]),
        eval_file=_resolved(given["eval_file"]),
        text_columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
        label_column=given["label_column"],
        limit=given["limit"],
        seed=given["seed"],
    )


def run_config(given: Mapping[str, Any], source: RowsSource, rows: TaskRows) -> RunConfig:
    """The run that the options ask for, on these rows.

    Raises:
        ConfigurationError: an option has a value that it cannot have.
    """
    method = given["method"]
    if method not in METHODS:
        raise ConfigurationError(f"--method {method!r} is unknown. The methods are {', '.join(METHODS)}.")
    posterior = MonteCLoRAConfig(
        **{name: given[name] for name in _OF_POSTERIOR},
        init_concentration=_number_or("--init-concentration", given["init_concentration"], "random"),
        degrees_of_freedom=_number_or("--degrees-of-freedom", given["degrees_of_freedom"], "rank", "in_features"),
        mixture="sparse" if method == "monteclora_sparse" else "dense",
        num_train_examples=len(rows.train) if given["objective"] == "elbo" else None,
    )
    training = FitOptions(
        epochs=given["epochs"],
        batch_size=given["batch_size"],
        learning_rate=given["lr"],
        posterior_learning_rate=given["posterior_lr"],
        weight_decay=given["weight_decay"],
        seed=given["seed"],
        save_every=given["save_every"],
    )
    local = Path(given["base_model"]).expanduser()
    return RunConfig(
        task=rows.task,
        base_model=str(local.resolve()) if local.is_dir() else given["base_model"],
        method=method,
        lora=LoRAOptions(given["rank"], given["lora_alpha"], given["lora_dropout"], given["targets"]),
        posterior=posterior,
        training=training,
        num_samples=given["num_samples"],
        max_length=given["max_length"],
        source=source,
    )


def require_alone(context: typer.Context, name: str, *besides: str) -> None:
    """An option beside which no other one counts: that none was typed, save those in `besides`.

    Raises:
        ConfigurationError: names those that were.
    """
    typed = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in (name, *besides):
            typed.append(max(parameter.opts, key=len))
    if typed:
        raise ConfigurationError(
            f"--{name} goes on with a run as it was started, so {', '.join(typed)} would do nothing. Drop "
            f"{'it' if len(typed) == 1 else 'them'}, or start a new run with --out."
        )


def _resolved(path: Path | None) -> str | None:
    """The full path, so that a run can be taken up and used from anywhere."""
    return None if path is None else str(path.expanduser().resolve())


def _number_or(option: str, text: str | None, *words: str) -> Any:
    if text is None or text in words:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ConfigurationError(f"{option} {text!r} must be a number, or {' or '.join(words)}.") from error
