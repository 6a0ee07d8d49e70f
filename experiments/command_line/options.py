"""From the options of `bayes-lora fit`, by name, to what they configure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.networks.trained_adapter import TrainedAdapter
from bayes_lora.experiments.runs.run_config import METHODS, RunConfig
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import TaskRows
from bayes_lora.inference import FitOptions
from bayes_lora.inference.finetuning.lora import LoRAOptions

# Options that MonteCLoRAConfig has under the same name, and that need no reading.
_OF_POSTERIOR = (
    *("num_components", "num_outer_samples", "sample_scale", "prior_concentration", "sampler", "objective"),
    *("normal_kl", "kl_weight", "cooperative_weight", "prior_scale", "temperature"),
)
# Options of the network and its training, which a post hoc fit leaves alone.
_OF_NETWORK = ("rank", "lora_alpha", "lora_dropout", "targets", "lr", "weight_decay", "two_phase")


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


def run_config(context: typer.Context, source: RowsSource, rows: TaskRows) -> RunConfig:
    """The run that the options ask for, on these rows.

    Raises:
        ConfigurationError: an option has a value that it cannot have, or would do nothing.
        AdapterError: --adapter is no LoRA adapter.
    """
    given = context.params
    method = given["method"]
    if method not in METHODS:
        raise ConfigurationError(f"--method {method!r} is unknown. The methods are {', '.join(METHODS)}.")
    adapter = _trained_adapter(context)
    base_model = given["base_model"]
    if adapter is not None and "base_model" not in typed(context):
        base_model = adapter.base_model or base_model
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
        phases="posterior" if adapter else "means_then_posterior" if given["two_phase"] else "joint",
        scale_schedule=given["scale_schedule"],
        scale_warmup=given["scale_warmup"],
        scale_per_adapter=given["scale_per_adapter"],
    )
    local = Path(base_model).expanduser()
    lora = LoRAOptions(given["rank"], given["lora_alpha"], given["lora_dropout"], given["targets"])
    return RunConfig(
        task=rows.task,
        base_model=str(local.resolve()) if local.is_dir() else base_model,
        method=method,
        lora=adapter or lora,
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
    others = [option for parameter, option in typed(context).items() if parameter not in (name, *besides)]
    if others:
        raise ConfigurationError(
            f"--{name} goes on with a run as it was started, so {', '.join(others)} would do nothing. Drop "
            f"{'it' if len(others) == 1 else 'them'}, or start a new run with --out."
        )


def typed(context: typer.Context) -> dict[str, str]:
    """The options that were typed: from the parameter's name to the option's."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found[parameter.name or ""] = max(parameter.opts, key=len)
    return found


def _trained_adapter(context: typer.Context) -> TrainedAdapter | None:
    given = context.params
    post_hoc, folder = given["method"] == "monteclora_posthoc", given["adapter"]
    if post_hoc and folder is None:
        raise ConfigurationError("--method monteclora_posthoc needs --adapter, the folder of a trained LoRA adapter.")
    if folder is None:
        return None
    if not post_hoc:
        raise ConfigurationError("--adapter belongs to --method monteclora_posthoc. Say that, or drop it.")
    idle = [option for name, option in typed(context).items() if name in _OF_NETWORK]
    if idle:
        raise ConfigurationError(
            f"--method monteclora_posthoc leaves the network as it is in --adapter, so {', '.join(idle)} would do "
            "nothing. Drop what does nothing; --posterior-lr is the learning rate that counts."
        )
    return TrainedAdapter.of(folder)


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
