"""`bayes-lora demo`: the whole thing on an embedded task."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.experiments.command_line.options import JsonFlag, OverwriteFlag, SeedOption


def demo_command(
    out: Annotated[Path | None, typer.Option(help="Folder of the demo; by default demo, or demo-language.")] = None,
    language: Annotated[
        bool, typer.Option("--language", help="SmolLM2 and questions instead, some of which have no answer.")
    ] = False,
    seed: SeedOption = 0,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fit minilm on an embedded task whose true probabilities are known, and write report.html."""
    from rich.console import Console

    from bayes_lora.experiments.command_line.console import say

    folder = out or Path("demo-language" if language else "demo")
    console = Console(stderr=True)
    if language:
        from bayes_lora.experiments.demo.language_demo import PAGE_FILE, run_language_demo

        metrics, page = run_language_demo(folder, seed=seed, overwrite=overwrite, console=console), folder / PAGE_FILE
    else:
        from bayes_lora.experiments.demo.demo import run_demo

        metrics, page = run_demo(folder, seed=seed, overwrite=overwrite, console=console), folder / "report.html"
    if as_json:
        print(json.dumps({"report": str(page), **metrics}))
    else:
        say(f"Report: {page}")
