"""`bayes-lora figures`: pictures of what a sweep found."""

from pathlib import Path
from typing import Annotated

import typer


def figures_command(
    sweep: Annotated[Path, typer.Argument(help="The --out of a sweep, or a folder with its study.json, results.csv.")],
) -> None:
    """Draw a sweep's results: their distribution over cells, along each axis of the grid, and how losses fell."""
    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.sweep.figures import write_figures
    from bayes_lora.experiments.sweep.results import read_results

    written = write_figures(read_results(sweep))
    say(f"In {sweep}: {', '.join(path.name for path in written)}.")
