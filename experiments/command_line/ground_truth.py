"""`bayes-lora ground-truth`: the posteriors of all methods against the posterior itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayes_lora.experiments.command_line.console import say
from bayes_lora.experiments.command_line.options import JsonFlag, seed_numbers
from bayes_lora.experiments.ground_truth.report import (
    COLUMNS,
    LEMMAS_FILE,
    MEASURES_FILE,
    RANKS_FILE,
    RESULTS_FILE,
    TABLE_FILE,
    Findings,
    cells,
    summaries,
    write_report,
)
from bayes_lora.experiments.ground_truth.study import Study, quick_study, run_study


def ground_truth_command(
    out: Annotated[Path, typer.Option(help="Folder of the study; where it holds this study, it is gone on with.")],
    seeds: Annotated[str | None, typer.Option(help="Numbers and commas; by default 0,1,2,3,4, quick 0.")] = None,
    problems: Annotated[str, typer.Option(help="regression, classification, or both.")] = "regression,classification",
    methods: Annotated[
        str | None,
        typer.Option(help="Names of the table's rows and commas, such as map,elbo_dense_N4; by default all."),
    ] = None,
    replications: Annotated[
        int | None, typer.Option(help="Of simulation-based calibration; by default 100, quick 10.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in minutes: 1 seed, short fits and chains, few replications.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the work, each on one core; by default all cores.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare approximate posteriors over LoRA-A with NUTS, on small regressions and classifications.

    Means, variances, coverage of intervals, predictives; simulation-based calibration; the method's lemmas. Whole,
    it takes under an hour on 2 cores. It can be stopped at any time: the same command goes on with it.
    """
    changes = {
        "seeds": None if seeds is None else seed_numbers(seeds),
        "problems": _words(problems),
        "methods": None if methods is None else _words(methods),
        "replications": replications,
    }
    changed = {name: value for name, value in changes.items() if value is not None}
    study = replace(quick_study() if quick else Study(), **changed)  # type: ignore[arg-type]
    workers = torch.get_num_threads() if workers is None else workers
    failed = run_study(study, out, workers=workers, console=Console(stderr=True))
    found = write_report(study, out)
    if as_json:
        print(json.dumps({"study": str(out), **found.to_json(), "failed": failed}))
    else:
        _print(found)
        files = (RESULTS_FILE, TABLE_FILE, MEASURES_FILE, RANKS_FILE, LEMMAS_FILE)
        say(f"In {out}: {', '.join(name for name in files if (out / name).is_file())}.")
        for job, why in failed.items():
            say(f"failed: {job}: {why}")
    if failed:
        raise typer.Exit(1)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _print(found: Findings) -> None:
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
