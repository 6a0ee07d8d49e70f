"""`bayes-lora tables`: what a sweep found."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.experiments.command_line.options import JsonFlag


def tables_command(
    sweep: Annotated[Path, typer.Argument(help="The --out of a sweep, or a folder with its study.json, results.csv.")],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="A method that the others are compared with; repeated. Default: LoRA, with and without decay."
        ),
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="Published numbers to stand beside, JSON with their source.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say how much a sweep's results move over its cells, method by method, and whether one moves less than another."""
    from rich.table import Table
    from rich.text import Text

    from bayes_lora.experiments.command_line.console import print_whole, say
    from bayes_lora.experiments.reports.plots import wrapped
    from bayes_lora.experiments.sweep.published import read_published
    from bayes_lora.experiments.sweep.results import read_results
    from bayes_lora.experiments.sweep.tables import NOTES, flat, tables_in, tables_of, write_tables

    found = read_results(sweep)
    beside = None if published is None else read_published(published)
    lines, differences = write_tables(found, reference or (), beside)
    if as_json:
        told = {"robustness": [flat(line) for line in lines], "differences": [flat(line) for line in differences]}
        print(json.dumps(told))
        return
    for shown in tables_of(lines, differences):
        table = Table(title=Text(shown.title), title_justify="left", show_lines=True)
        for index, column in enumerate(shown.columns):
            table.add_column(Text(column.replace(" (", "\n(")), justify="right" if index else "left", no_wrap=True)
        for row in shown.rows:
            table.add_row(*(Text("\n".join(map(wrapped, cell))) for cell in row))
        print_whole(table)
    for note in NOTES[: 2 if differences else 1]:
        say(note)
    for fault in beside.faults() if beside is not None else ():
        say(f"published: {fault}")
    say(f"In {sweep}: {', '.join(path.name for path in tables_in(sweep))}.")
