"""`bayes-lora methods`: what can be compared, and what each of them says of itself."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.console import say
from bayes_lora.experiments.command_line.options import JsonFlag
from bayes_lora.experiments.compare.method_spec import SUFFIXES, MethodSpec
from bayes_lora.experiments.compare.methods import METHODS

_NEEDS = {"nothing": "nothing", "point": "the point estimate", "own": "a network of its own"}


def methods_command(
    name: Annotated[str | None, typer.Argument(help="One of them, to see its options, defaults and source.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the methods that compare knows: what each trains, its options with defaults, its source."""
    if name is not None and name not in METHODS:
        raise ConfigurationError(f"there is no method {name!r}. The methods are {', '.join(METHODS)}.")
    if as_json:
        suffixes = [asdict(suffix) for suffix in SUFFIXES.values()]
        everything = {"methods": [spec.to_json() for spec in METHODS.values()], "suffixes": suffixes}
        print(json.dumps(everything if name is None else METHODS[name].to_json()))
    elif name is None:
        _list()
    else:
        _show(METHODS[name])


def _list() -> None:
    table = Table(title="S draws, M members, C classes", title_justify="left")
    table.add_column("method", no_wrap=True)
    for column in ("what is trained", "starts from", "forward passes"):
        table.add_column(column)
    for spec in METHODS.values():
        table.add_row(*map(Text, (spec.name, spec.summary, _NEEDS[spec.needs], spec.passes)))
    table.add_section()
    for suffix in SUFFIXES.values():
        after = "a trained posterior" if suffix.to_noise else "any method"
        table.add_row(*map(Text, (f"+{suffix.name}", suffix.summary, after, suffix.passes)))
    Console().print(table)
    say("Options and source of one: bayes-lora methods NAME")


def _show(spec: MethodSpec) -> None:
    say(f"{spec.name}: {spec.summary}")
    say(f"In Python: {spec.python}")
    say(f"Starts from: {_NEEDS[spec.needs]}. Forward passes a batch: {spec.passes}.")
    say(f"Source: {spec.source}")
    if not spec.options:
        say("It has no options.")
        return
    table = Table(title=Text(f"{spec.name}[option=value,...]"), title_justify="left")
    for column in ("option", "default", "changes"):
        table.add_column(column)
    for option in spec.options:
        table.add_row(*map(Text, (option.name, option.default_text, f"the {option.of}")))
    Console().print(table)
