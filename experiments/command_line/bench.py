"""`bayes-lora bench`: time and memory against PEFT."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.bench.check import TOLERANCE, check_against
from bayes_lora.experiments.bench.plots import growth
from bayes_lora.experiments.bench.report import (
    QUANTITIES,
    TITLES,
    around_table,
    gradient_rows,
    markdown,
    ratios_text,
    sampling_line,
    update_readme,
    value_text,
)
from bayes_lora.experiments.bench.results import Results, read_results
from bayes_lora.experiments.bench.suites import SUITES, Bench, run_bench
from bayes_lora.experiments.command_line.console import say
from bayes_lora.experiments.command_line.options import JsonFlag, typed
from bayes_lora.experiments.networks.named_models import base_model_help
from bayes_lora.files import write_file, write_json

RESULTS_FILE, PAGE_FILE, PICTURE_FILE = "bench.json", "bench.md", "bench.png"
_ROUNDS, _QUICK_ROUNDS = 21, 3
_OF_MEASURING = ("suite", "rounds", "quick", "base_model")


def bench_command(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for {RESULTS_FILE}, {PAGE_FILE} and {PICTURE_FILE}.")
    ] = None,
    suite: Annotated[str, typer.Option(help=f"all, or some of {', '.join(SUITES)}, separated by commas.")] = "all",
    rounds: Annotated[
        int | None, typer.Option(help=f"Turns of each contender; by default {_ROUNDS}, quick {_QUICK_ROUNDS}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest case of each suite, a few rounds.")] = False,
    base_model: Annotated[str | None, typer.Option(help=f"{base_model_help()} Default: minilm.")] = None,
    check: Annotated[
        Path | None,
        typer.Option(help=f"Earlier results: measure their suites, fail on a ratio over {TOLERANCE:.0%} worse."),
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Earlier results to use instead of measuring.")] = None,
    readme: Annotated[Path | None, typer.Option(help="A page whose table, between two markers, is made anew.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files in --out if they exist.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Time training steps, draws and predictions against PEFT, in interleaved rounds, and measure their memory.

    And how much a stochastic gradient varies, by sampler and KL.

    Whole, it takes about an hour on 2 cores; nothing else should run meanwhile.
    """
    if out is None and check is None and source is None:
        raise ConfigurationError("Give --out, the folder for the results; or --check or --from, earlier results.")
    if source is not None:
        idle = [option for name, option in typed(context).items() if name in _OF_MEASURING]
        if idle:
            raise ConfigurationError(f"--from measures nothing, so {', '.join(idle)} would do nothing. Drop one side.")
    if readme is not None:
        around_table(readme)
    earlier = None if check is None else read_results(check)
    place = None if out is None else _Place(out)
    if place is not None:
        place.require_free(overwrite=overwrite)
    if source is not None:
        results = read_results(source)
        if place is not None:
            place.write(results)
    else:
        bench, suites = _planned(suite, rounds, quick, base_model, earlier)
        results = run_bench(bench, suites, place.write if place is not None else lambda _: None)
    if readme is not None:
        update_readme(readme, results)
    if as_json:
        print(json.dumps(results.to_json()))
    else:
        print_results(results)
    if earlier is not None:
        compared = check_against(results, earlier)
        if not as_json:
            say(f"{compared} ratios compared with {check}: none is more than {TOLERANCE:.0%} worse.")
    if place is not None and not as_json:
        say(f"Written to {place.folder}: {RESULTS_FILE}, {PAGE_FILE}, {PICTURE_FILE}.")


def _planned(
    suite: str, rounds: int | None, quick: bool, base_model: str | None, earlier: Results | None
) -> tuple[Bench, Sequence[str]]:
    """What to measure; to check earlier results, what they have, as they have it."""
    suites = list(SUITES)
    if earlier is not None:
        suites = earlier.suites
        quick = quick or bool(earlier.settings["quick"])
        base_model = base_model or str(earlier.settings["base_model"])
        torch.set_num_threads(int(earlier.settings["threads"]))
    if suite != "all":
        suites = [name.strip() for name in suite.split(",") if name.strip()]
    if rounds is None:
        rounds = _QUICK_ROUNDS if quick else _ROUNDS
    console = Console(stderr=True)
    return Bench(base_model or "minilm", rounds, quick, console=console), suites


@dataclass(frozen=True)
class _Place:
    """The folder that a bench writes."""

    folder: Path

    def require_free(self, *, overwrite: bool) -> None:
        taken = [name for name in (RESULTS_FILE, PAGE_FILE, PICTURE_FILE) if (self.folder / name).exists()]
        if taken and not overwrite:
            raise DataError(
                f"{self.folder} has a {taken[0]} already. Choose another --out, or say --overwrite to replace it."
            )

    def write(self, results: Results) -> None:
        """All three files, as far as the results go."""
        picture = io.BytesIO()
        growth(results).savefig(picture, format="png", dpi=110)
        write_json(self.folder / RESULTS_FILE, results.to_json())
        write_file(self.folder / PAGE_FILE, markdown(results, PICTURE_FILE).encode())
        write_file(self.folder / PICTURE_FILE, picture.getvalue())


def print_results(results: Results) -> None:
    """A table for each suite; a case is named once."""
    for suite in results.suites:
        table = Table(title=Text(TITLES[suite]), title_justify="left")
        if suite == "gradients":
            head, rows = gradient_rows(results)
            for column in head:
                table.add_column(column)
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            Console().print(table)
            continue
        for column in ("case", "contender", "median", "ratio to PEFT LoRA, or as named"):
            table.add_column(column, justify="right" if column == "median" else "left")
        records = results.of(suite)
        labels = {record.contender: record.label for record in records}
        before = ""
        for record in records:
            case = f"{record.described_case()}: {QUANTITIES[record.quantity]}"
            cells = ("" if case == before else case, record.label, value_text(record), ratios_text(record, labels))
            table.add_row(*(Text(cell) for cell in cells))
            before = case
        Console().print(table)
    if sampling_line(results):
        say(sampling_line(results))
    for suite, why in results.not_measured.items():
        say(f"{suite}: not measured, {why}.")
