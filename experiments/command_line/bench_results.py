"""What `bayes-lora bench` measures, where it writes, and its results on the terminal."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.errors import DataError
from bayes_lora.experiments.bench.plots import growth
from bayes_lora.experiments.bench.report import (
    QUANTITIES,
    TITLES,
    gradient_rows,
    markdown,
    ratios_text,
    sampling_line,
    value_text,
)
from bayes_lora.experiments.bench.results import Results
from bayes_lora.experiments.bench.suites import BY_NAME_ONLY, SUITES, Bench
from bayes_lora.experiments.command_line.bench import PAGE_FILE, PICTURE_FILE, QUICK_ROUNDS, RESULTS_FILE, ROUNDS
from bayes_lora.experiments.command_line.console import say
from bayes_lora.files import write_file, write_json


def planned(
    suite: str, rounds: int | None, quick: bool, base_model: str | None, earlier: Results | None
) -> tuple[Bench, Sequence[str]]:
    """What to measure; to check earlier results, what they have, as they have it."""
    suites = [suite for suite in SUITES if suite not in BY_NAME_ONLY]
    if earlier is not None:
        suites = earlier.suites
        quick = quick or bool(earlier.settings["quick"])
        base_model = base_model or str(earlier.settings["base_model"])
        torch.set_num_threads(int(earlier.settings["threads"]))
    if suite != "all":
        suites = [name.strip() for name in suite.split(",") if name.strip()]
    if rounds is None:
        rounds = QUICK_ROUNDS if quick else ROUNDS
    console = Console(stderr=True)
    return Bench(base_model or "minilm", rounds, quick, console=console), suites


@dataclass(frozen=True)
class Place:
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
