"""`bayes-lora methods`: what can be compared, and what each of them says of itself."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.options import JsonFlag


def methods_command(
    name: Annotated[str | None, typer.Argument(help="One of them, to see its options, defaults and source.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the methods that compare knows: what each trains, its options with defaults, its source."""
    from bayes_lora.experiments.command_line.methods_table import print_method, print_methods
    from bayes_lora.experiments.compare.method_spec import SUFFIXES
    from bayes_lora.experiments.compare.methods import METHODS

    if name is not None and name not in METHODS:
        raise ConfigurationError(f"there is no method {name!r}. The methods are {', '.join(METHODS)}.")
    if as_json:
        suffixes = [asdict(suffix) for suffix in SUFFIXES.values()]
        everything = {"methods": [spec.to_json() for spec in METHODS.values()], "suffixes": suffixes}
        print(json.dumps(everything if name is None else METHODS[name].to_json()))
    elif name is None:
        print_methods()
    else:
        print_method(METHODS[name])
