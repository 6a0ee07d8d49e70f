"""The command line, `bayes-lora`."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from bayes_lora import __version__
from bayes_lora.errors import BayesLoRAError
from bayes_lora.experiments import ignore_known_warnings
from bayes_lora.experiments.command_line.late_help import LateHelpCommand

# The commands, in the order of the help. Each is the function <name>_command of the module here of the same name.
COMMANDS = (
    *("fit", "predict", "generate", "ask", "push", "bench", "compare", "sweep", "tables", "figures", "plan"),
    *("methods", "diagnose", "draws", "ground-truth", "demo", "digits"),
)


def command_function(name: str) -> Callable[..., None]:
    """The function behind a command; its module is imported."""
    return getattr(import_module(_module(name)), f"{_identifier(name)}_command")  # type: ignore[no-any-return]


def load_command(name: str) -> TyperCommand:
    """A command as click runs it."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, cls=LateHelpCommand)(command_function(name))
    return typer.main.get_command(alone)  # type: ignore[return-value]


class _Commands(TyperGroup):
    """Commands that are imported when they run: what they do takes seconds to load, and the list of them does not."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """What the list says of a command; it cannot be run."""
        return TyperCommand(cmd_name, help=_summary(cmd_name)) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load_command(name), rest


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


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


def main() -> None:
    """Entry point: an error of this library is one message and exit status 1, not a traceback."""
    ignore_known_warnings()
    try:
        app()
    except BayesLoRAError as error:
        from rich.console import Console

        Console(stderr=True).print(f"[bold red]error:[/] {type(error).__name__}:", end=" ")
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _module(name: str) -> str:
    return f"bayes_lora.experiments.command_line.{_identifier(name)}"


def _summary(name: str) -> str:
    """The first paragraph of a command's docstring, read without importing it."""
    spec = find_spec(_module(name))
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == f"{_identifier(name)}_command":
            return (ast.get_docstring(node) or "").split("\n\n")[0]
    raise AssertionError(f"{spec.origin} has no function {_identifier(name)}_command")
