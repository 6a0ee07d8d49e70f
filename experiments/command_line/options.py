"""Options that several commands have, each said once, and what they say of the rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.families.family import task_families
from bayes_lora.experiments.networks.named_models import base_model_help
from bayes_lora.experiments.tasks.sources import RowsSource

# The rows.
TaskOption = Annotated[str | None, typer.Option(help="mrpc, rte, cola, wic or boolq.")]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Reads <data-dir>/<task>/{train,validation}.jsonl.gz instead of the hub.")
]
TrainFileOption = Annotated[Path | None, typer.Option(help="Your own rows: .jsonl, .jsonl.gz or .csv.")]
EvalFileOption = Annotated[Path | None, typer.Option(help="Rows to evaluate on; by default a tenth of --train-file.")]
TextColumnsOption = Annotated[str | None, typer.Option(help="One column, or two separated by a comma.")]
LabelColumnOption = Annotated[str, typer.Option(help="Column with the label, such as the class.")]
TaskTypeOption = Annotated[str, typer.Option(help=f"What --train-file is about: {', '.join(task_families())}.")]
MaxLengthOption = Annotated[int | None, typer.Option(help="Tokens a row is cut to; by default the task's.")]

# The network, its adapters and its training.
BaseModelOption = Annotated[str, typer.Option(help=base_model_help())]
RankOption = Annotated[int, typer.Option(help="LoRA rank.")]
LoRAAlphaOption = Annotated[int, typer.Option(help="LoRA alpha.")]
TargetsOption = Annotated[str, typer.Option(help="attention, all-linear, or module names and commas.")]
EpochsOption = Annotated[int, typer.Option(help="Passes over the training rows.")]
BatchSizeOption = Annotated[int, typer.Option(help="Examples a step.")]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU where torch sees one), cpu, cuda.")]

# What is written.
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


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
        task_type=given.get("task_type", "classification"),
    )


def typed(context: typer.Context) -> dict[str, str]:
    """The options that were typed: from the parameter's name to the option's."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found[parameter.name or ""] = max(parameter.opts, key=len)
    return found


def seed_numbers(text: str) -> tuple[int, ...]:
    """What --seeds says.

    Raises:
        ConfigurationError: something other than whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigurationError(f"--seeds {text!r} must be whole numbers and commas, such as 0,1,2.") from error


def _resolved(path: Path | str | None) -> str | None:
    """The full path, so that a run can be taken up and used from anywhere."""
    # Older releases of typer (0.26) keep text in a context's params, and make paths for the function alone.
    return None if path is None else str(Path(path).expanduser().resolve())
