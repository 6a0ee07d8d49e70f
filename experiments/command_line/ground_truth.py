"""`bayes-lora ground-truth`: the posteriors of all methods against the posterior itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.experiments.command_line.options import JsonFlag, seed_numbers


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
    import torch
    from rich.console import Console

    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.command_line.ground_truth_table import print_findings
    from bayes_lora.experiments.ground_truth.report import (
        LEMMAS_FILE,
        MEASURES_FILE,
        RANKS_FILE,
        RESULTS_FILE,
        TABLE_FILE,
        write_report,
    )
    from bayes_lora.experiments.ground_truth.study import Study, quick_study, run_study

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
        print_findings(found)
        files = (RESULTS_FILE, TABLE_FILE, MEASURES_FILE, RANKS_FILE, LEMMAS_FILE)
        say(f"In {out}: {', '.join(name for name in files if (out / name).is_file())}.")
        for job, why in failed.items():
            say(f"failed: {job}: {why}")
    if failed:
        raise typer.Exit(1)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
