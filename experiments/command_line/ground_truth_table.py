"""Findings of a ground-truth study on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.experiments.command_line.console import say
from bayes_lora.experiments.ground_truth.report import COLUMNS, Findings, cells, summaries


def print_findings(found: Findings) -> None:
    """A table for each kind of problem, and how the ranks are."""
    wide = Console(width=max(Console().width, 150))
    for kind, methods in found.methods.items():
        title = f"{kind}: mean ± standard error over problems; sd: posterior standard deviations; KL in nats"
        table = Table(title=title, title_justify="left")
        table.add_column("method", no_wrap=True)
        for heading, _ in COLUMNS.values():
            table.add_column(Text(heading), justify="right")
        for name, summary in summaries(methods).items():
            table.add_row(Text(name), *map(Text, cells(summary)))
        wide.print(table)
    for (kind, name), ranks in found.ranks.items():
        number = len(ranks.values)
        say(f"calibration, {kind}, {name}: ranks {ranks.verdict}, p = {ranks.p_value:.2g}, {number} replications")
