"""Tables on the terminal. Every cell is a Text: as a string, a row's "[b]" or ":x:" would be read as markup."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.tasks import Task
from bayes_lora.metrics.titles import title_of

PREDICTIVE = "posterior predictive"  # as tables of metrics call it


def say(line: str) -> None:
    """A line on stdout, as it is and unbroken, so that paths in it can be copied."""
    Console().print(Text(line), soft_wrap=True)


def print_whole(table: Table) -> None:
    """A table at its own width where the terminal has less: squeezed, its names would go first."""
    Console(width=max(Console().width, Console(width=1000).measure(table).maximum)).print(table)


# More of them are lines of a table, not columns.
_MOST_COLUMNS = 4


def print_metrics(metrics: Mapping[str, Mapping[str, float]], title: str) -> None:
    """A row of metrics for each predictor, or of predictors for each metric where these are many."""
    names = list(next(iter(metrics.values())))
    rows = [[name, *(title_of(metric).cell(row[metric]) for metric in names)] for name, row in metrics.items()]
    cells = [["", *(title_of(metric).head for metric in names)], *rows]
    if len(names) > _MOST_COLUMNS:
        cells = [list(column) for column in zip(*cells, strict=True)]
    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(cells[0]):
        table.add_column(Text(column), justify="right" if index else "left", no_wrap=index == 0)
    for row in cells[1:]:
        table.add_row(*map(Text, row))
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
        table.add_row(
            *(Text(task.family.inputs.shown(row[column])) for column in task.columns), *map(Text, predicted.values())
        )
    Console().print(table)
