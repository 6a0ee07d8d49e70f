"""What the options of `bayes-lora compare` say of methods, and its results on the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.console import print_whole
from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.report import Scores, present, table_cells
from bayes_lora.experiments.compare.running import Results


def reference_methods(text: str, methods: Sequence[Method], typed_options: Mapping[str, str]) -> list[Method]:
    """The methods to test against; where nobody said, the usual ones, or the first one where none of them is there."""
    named = parse_methods(text)
    known = [method for method in named if method in methods]
    if "reference" not in typed_options:
        return known or [methods[0]]
    if len(known) < len(named):
        raise ConfigurationError(
            f"--reference {text!r} must be some of the --methods that are compared. Name one of them, or more."
        )
    return known


def short_names(texts: Sequence[str], methods: Sequence[Method]) -> dict[Method, str]:
    """What each --short says.

    Raises:
        ConfigurationError: no name, or not one of the methods that are compared.
    """
    found = {}
    for text in texts:
        name, _, written = (part.strip() for part in text.partition("="))
        method = parse_methods(written)[0] if name and written else None
        if method is None or method not in methods:
            raise ConfigurationError(f"--short {text!r} must be NAME=METHOD, with one of the --methods.")
        found[method] = name
    return found


def print_scores(found: Scores) -> None:
    """A row for each method."""
    columns = present(found)
    title = "mean ± standard error over seeds; * best of its column; NLL in nats; AUROC by entropy"
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("seeds", justify="right")
    for column in columns:
        table.add_column(Text(column.title), justify="right")
    for method, cells in table_cells(found, columns, "{}*", " ± ").items():
        table.add_row(Text(method.label), str(len(found[method])), *map(Text, cells))
    print_whole(table)


def as_json_object(results: Results, found: Scores) -> dict[str, Any]:
    """The same in plain data, and what failed or is left."""
    return {
        "study": str(results.folder),
        "methods": {
            # Where a metric has no value, null: JSON has no NaN.
            method.label: {
                str(seed): {name: None if math.isnan(number) else number for name, number in numbers.items()}
                for seed, numbers in of.items()
            }
            for method, of in found.items()
        },
        "failed": [[method.label, seed, why] for (method, seed), why in results.failed.items()],
        "missing": [[method.label, seed] for method, seed in results.missing],
    }
