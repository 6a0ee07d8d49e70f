"""The command line, `bayes-lora`."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from bayes_lora import __version__
from bayes_lora.errors import BayesLoRAError
from bayes_lora.experiments import ignore_known_warnings
from bayes_lora.experiments.command_line.bench import bench_command
from bayes_lora.experiments.command_line.compare import compare_command
from bayes_lora.experiments.command_line.demo import demo_command
from bayes_lora.experiments.command_line.diagnose import diagnose_command
from bayes_lora.experiments.command_line.fit import fit_command
from bayes_lora.experiments.command_line.ground_truth import ground_truth_command
from bayes_lora.experiments.command_line.methods import methods_command
from bayes_lora.experiments.command_line.predict import predict_command
from bayes_lora.experiments.command_line.push import push_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"bayes-lora {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # its callback does the work
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """A posterior over LoRA adapters: fit a transformer, and know how sure it is."""


app.command("fit")(fit_command)
app.command("predict")(predict_command)
app.command("push")(push_command)
app.command("bench")(bench_command)
app.command("compare")(compare_command)
app.command("methods")(methods_command)
app.command("diagnose")(diagnose_command)
app.command("ground-truth")(ground_truth_command)
app.command("demo")(demo_command)


def main() -> None:
    """Entry point: an error of this library is one message and exit status 1, not a traceback."""
    ignore_known_warnings()
    try:
        app()
    except BayesLoRAError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {type(error).__name__}:", end=" ")
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
