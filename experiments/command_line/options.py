"""Options that several commands have, each said once. Nothing heavy is imported: help and typing errors come at once.

What only the library can list stands in their help in braces; see `late_help`.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError

# The rows.
TaskOption = Annotated[str | None, typer.Option(help="One of: {tasks}.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Reads <data-dir>/<task>/*.jsonl.gz, or <data-dir>/commonsense/*.jsonl.gz, instead of the hub."),
]
TrainFileOption = Annotated[Path | None, typer.Option(help="Your own rows: .jsonl, .jsonl.gz or .csv.")]
TrainDirOption = Annotated[
    Path | None, typer.Option(help="Your own images or recordings, in a folder for each class: DIR/CLASS/*.")
]
EvalDirOption = Annotated[Path | None, typer.Option(help="Those to evaluate on; by default a tenth of --train-dir.")]
EvalFileOption = Annotated[Path | None, typer.Option(help="Rows to evaluate on; by default a tenth of --train-file.")]
TextColumnsOption = Annotated[
    str | None, typer.Option(help="One column, or two separated by a comma; a language_model knows its own.")
]
LabelColumnOption = Annotated[str, typer.Option(help="Column with the label, such as the class.")]
TaskTypeOption = Annotated[str, typer.Option(help="What --train-file or --train-dir is about: {task_types}.")]
ScoringOption = Annotated[
    str | None, typer.Option(help="Of multiple choice, how options are scored: {scorings}; letter by default.")
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(help="Tokens a row is cut to, by default the task's; of a recording seconds, by default 30."),
]

# The network, its adapters and its training.
BaseModelOption = Annotated[str, typer.Option(help="{base_models}")]
RankOption = Annotated[int, typer.Option(help="LoRA rank.")]
LoRAAlphaOption = Annotated[int, typer.Option(help="LoRA alpha.")]
TargetsOption = Annotated[str, typer.Option(help="attention, all-linear, or module names and commas.")]
EpochsOption = Annotated[int, typer.Option(help="Passes over the training rows.")]
BatchSizeOption = Annotated[int, typer.Option(help="Examples a step.")]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU where torch sees one), cpu, cuda.")]

NumSamplesOption = Annotated[
    str | None, typer.Option(help="Posterior draws of a prediction; auto: for each batch as many as it takes.")
]
DrawsOption = Annotated[
    Draws | None,
    typer.Option(help="How draws belong together: by four, in pairs, or not at all; by default as needs the fewest."),
]

# What is written.
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def typed(context: typer.Context) -> dict[str, str]:
    """The options that were typed: from the parameter's name to the option's."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found[parameter.name or ""] = max(parameter.opts, key=len)
    return found


def num_samples_of(text: str) -> int | Literal["auto"]:
    """What --num-samples says.

    Raises:
        ConfigurationError: neither a whole number nor auto.
    """
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError as error:
        raise ConfigurationError(f"--num-samples {text!r} must be a whole number, such as 16, or auto.") from error


def seed_numbers(text: str) -> tuple[int, ...]:
    """What --seeds says.

    Raises:
        ConfigurationError: something other than whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigurationError(f"--seeds {text!r} must be whole numbers and commas, such as 0,1,2.") from error


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


def named_folder(text: str) -> tuple[str, Path]:
    """NAME=FOLDER, or a folder, whose name is its own."""
    name, is_named, folder = text.rpartition("=")
    return (name, Path(folder)) if is_named else (Path(text).name, Path(text))
