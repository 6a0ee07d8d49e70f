"""`bayes-lora demo`: the whole thing on an embedded task."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.experiments.command_line.options import JsonFlag, OverwriteFlag, SeedOption


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("demo"),
    seed: SeedOption = 0,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fit minilm on an embedded task whose true probabilities are known, and write report.html."""
    from rich.console import Console

    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.demo.demo import run_demo

    metrics = run_demo(out, seed=seed, overwrite=overwrite, console=Console(stderr=True))
    if as_json:
        print(json.dumps({"report": str(out / "report.html"), **metrics}))
    else:
        say(f"Report: {out / 'report.html'}")
