"""`bayes-lora tables`: what a sweep found."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.experiments.command_line.options import JsonFlag


def tables_command(
    sweep: Annotated[Path, typer.Argument(help="The --out of a sweep, or a folder with its study.json, results.csv.")],
    reference: Annotated[
        list[str] | None, typer.Option(help="A method that the others are compared with; repeated. Default: the first.")
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="Published numbers to stand beside, JSON with their source.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say how much a sweep's results move over its cells, method by method, and whether one moves less than another."""
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from bayes_lora.experiments.command_line.console import print_whole, say
    from bayes_lora.experiments.sweep.published import read_published
    from bayes_lora.experiments.sweep.results import read_results
    from bayes_lora.experiments.sweep.tables import tables_in, write_tables

    found = read_results(sweep)
    beside = None if published is None else read_published(published)
    lines, differences = write_tables(found, reference or (), beside)
    if as_json:
        told = {"robustness": [asdict(line) for line in lines], "differences": [asdict(line) for line in differences]}
        print(json.dumps(told).replace("NaN", "null"))
        return
    for task, metric in dict.fromkeys((line.task, line.metric) for line in lines):
        own = [line for line in lines if (line.task, line.metric) == (task, metric)]
        names = list(dict.fromkeys(line.statistic for line in own))
        table = Table(title=f"{task}: {metric} over cells", title_justify="left")
        for column in ("method", "cells", *names):
            side = "left" if column == "method" else "right"
            table.add_column(column.replace("_", " "), justify=side, no_wrap=True)  # type: ignore[arg-type]
        for method in dict.fromkeys(line.method for line in own):
            of = {line.statistic: line for line in own if line.method == method}
            cells = [f"{of[name].value:.3f}" for name in names]
            table.add_row(Text(method), str(of[names[0]].cells), *cells)
        print_whole(table)
    for fault in beside.faults() if beside is not None else ():
        say(f"published: {fault}")
    say(f"In {sweep}: {', '.join(path.name for path in tables_in(sweep))}.")
