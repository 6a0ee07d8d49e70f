"""Methods of a comparison on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.experiments.command_line.console import say
from bayes_lora.experiments.compare.method_spec import SUFFIXES, MethodSpec
from bayes_lora.experiments.compare.methods import METHODS

_NEEDS = {"nothing": "nothing", "point": "the point estimate", "own": "a network of its own"}


def print_methods() -> None:
    """All of them, one a row."""
    table = Table(title="S draws, M members, C classes", title_justify="left")
    table.add_column("method", no_wrap=True)
    for column in ("what is trained", "starts from", "forward passes"):
        table.add_column(column)
    for spec in METHODS.values():
        table.add_row(*map(Text, (spec.name, spec.summary, _NEEDS[spec.needs], spec.passes)))
    table.add_section()
    for suffix in SUFFIXES.values():
        table.add_row(*map(Text, (f"+{suffix.name}", suffix.summary, f"{suffix.after} name", suffix.passes)))
    Console().print(table)
    say("Options and source of one: bayes-lora methods NAME")


def print_method(spec: MethodSpec) -> None:
    """One of them, with its options."""
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
