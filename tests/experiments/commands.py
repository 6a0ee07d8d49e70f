"""Running the command line in this process."""

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from bayes_lora.errors import BayesLoRAError
from bayes_lora.experiments.command_line.main import app

QUICK = ["--epochs", "1", "--batch-size", "8", "--num-samples", "3", "--max-length", "16"]
PAIRS = ["--text-columns", "a,b", "--label-column", "same"]


def run(*arguments: object) -> Any:
    """The command's result; an error of the library is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, BayesLoRAError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def fit_arguments(rows_file: Path) -> list[object]:
    return ["fit", "--train-file", rows_file, *PAIRS]
