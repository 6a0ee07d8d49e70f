"""Tables on the terminal. Every cell is a Text: as a string, a row's "[b]" or ":x:" would be read as markup."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.experiments.tasks.rows import Row

PREDICTIVE = "posterior predictive"  # as tables of metrics call it


def say(line: str) -> None:
    """A line on stdout, as it is and unbroken, so that paths in it can be copied."""
    Console().print(Text(line), soft_wrap=True)


def print_metrics(metrics: Mapping[str, Mapping[str, float]], title: str) -> None:
    """A row of metrics for each predictor."""
    table = Table(title=Text(title), title_justify="left")
    for column in ("", "accuracy %", "NLL (nats)", "ECE % (15 bins)", "Brier"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in metrics.items():
        cells = f"{100 * row['accuracy']:.1f}", f"{row['nll']:.4f}", f"{100 * row['ece']:.1f}", f"{row['brier']:.4f}"
        table.add_row(Text(name), *cells)
    Console().print(table)


def print_predictions(columns: Sequence[str], described: Sequence[Row], most: int = 10) -> None:
    """The first rows with what was predicted for them."""
    title = f"{min(most, len(described))} of {len(described)} predictions; entropy and mutual information (MI) in nats"
    table = Table(title=title, title_justify="left", expand=True)
    for column in columns:
        table.add_column(Text(column), no_wrap=True, ratio=1)
    for column in ("prediction", "prob.", "entropy", "MI"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in described[:most]:
        numbers = f"{row['probs'][row['prediction']]:.3f}", f"{row['total_entropy']:.3f}"
        texts = (Text(row[column]) for column in (*columns, "prediction"))
        table.add_row(*texts, *numbers, f"{row['mutual_information']:.4f}")
    Console().print(table)
