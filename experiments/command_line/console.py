"""Tables on the terminal. Every cell is a Text: as a string, a row's "[b]" or ":x:" would be read as markup."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.tasks import Task

PREDICTIVE = "posterior predictive"  # as tables of metrics call it


def say(line: str) -> None:
    """A line on stdout, as it is and unbroken, so that paths in it can be copied."""
    Console().print(Text(line), soft_wrap=True)


# Of metrics that have one: title, factor, format.
_METRICS = {
    "accuracy": ("accuracy %", 100, ".1f"),
    "nll": ("NLL (nats)", 1, ".4f"),
    "ece": ("ECE % (15 bins)", 100, ".1f"),
    "brier": ("Brier", 1, ".4f"),
}


def print_metrics(metrics: Mapping[str, Mapping[str, float]], title: str) -> None:
    """A row of metrics for each predictor."""
    shown = {name: _METRICS.get(name, (name, 1, ".4f")) for name in next(iter(metrics.values()))}
    table = Table(title=Text(title), title_justify="left")
    for column in ("", *(of for of, _, _ in shown.values())):
        table.add_column(column, justify="right" if column else "left")
    for name, row in metrics.items():
        table.add_row(Text(name), *(format(factor * row[of], form) for of, (_, factor, form) in shown.items()))
    Console().print(table)


def print_predictions(task: Task, described: Sequence[Row], most: int = 10) -> None:
    """The first rows with what was predicted for them."""
    title = f"{min(most, len(described))} of {len(described)} predictions{task.family.table_note}"
    table = Table(title=title, title_justify="left", expand=True)
    for column in task.columns:
        table.add_column(Text(column), no_wrap=True, ratio=1)
    cells = [task.family.cells(row) for row in described[:most]]
    for column in cells[0]:
        table.add_column(column, justify="right", no_wrap=True)
    for row, predicted in zip(described, cells, strict=False):
        table.add_row(*(Text(row[column]) for column in task.columns), *map(Text, predicted.values()))
    Console().print(table)
