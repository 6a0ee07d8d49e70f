"""`bayes-lora sweep`: a comparison at every point of a grid."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.options import DataDirOption, DeviceOption, JsonFlag, typed

_OF_STATUS = ("status", "storage", "as_json")


def sweep_command(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A YAML file, or one of {recipes}.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep here; where it holds this sweep, it is gone on with.")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="One of the recipe's forms, such as minilm: that of a smaller model.")
    ] = None,
    data_dir: DataDirOption = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where the workers agree: any Optuna URL, for several machines; by default an SQLite file in --out.",
            envvar="BAYES_LORA_STORAGE_URL",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes here; where there are several, each has one core.")] = 1,
    max_hours: Annotated[
        float | None, typer.Option(help="Start nothing more after so long; the same command goes on later.")
    ] = None,
    device: DeviceOption = "auto",
    keep_trained: Annotated[
        bool, typer.Option("--keep-trained", help="Keep trained networks, not only their predictions.")
    ] = False,
    heartbeat: Annotated[
        float, typer.Option(help="Seconds between signs of life; what a worker did that misses six is done anew.")
    ] = 10.0,
    status: Annotated[Path | None, typer.Option(help="Only say how far the sweep in this folder is.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a recipe: a comparison at every point of a grid, on one machine or many.

    It can be stopped at any time: the same command goes on with it. The same command elsewhere, with the same
    --storage, joins.
    """
    from bayes_lora.extras import require_extra

    require_extra("sweep", "bayes-lora sweep", "optuna", "yaml")
    from rich.console import Console

    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.sweep.status import read_status

    if status is not None:
        others = [option for name, option in typed(context).items() if name not in _OF_STATUS]
        if others:
            raise ConfigurationError(f"--status runs nothing, so {', '.join(others)} would do nothing. Drop one side.")
        found = read_status(status, storage)
        if as_json:
            print(json.dumps(found.to_json()))
        else:
            Console().print(found.table())
            for cell, why in found.failed.items():
                say(f"failed: {cell}: {why}")
        return
    if recipe is None or out is None:
        raise ConfigurationError("Give a recipe and --out, the folder of its results; or --status and such a folder.")
    from bayes_lora.experiments.runs.device import resolve_device
    from bayes_lora.experiments.sweep.recipe import read_recipe
    from bayes_lora.experiments.sweep.running import Options, Sweep, run_sweep

    options = Options(storage, workers, max_hours, resolve_device(device), keep_trained, heartbeat)
    sweep = Sweep.of(read_recipe(recipe, form, data_dir), out, options, data_dir)
    rows, found = run_sweep(sweep, Console(stderr=True))
    if as_json:
        print(json.dumps({"sweep": str(out), "results": len(rows), **found.to_json()}))
    else:
        Console().print(found.table())
        say(f"{len(rows)} results in {out}: results.csv, results.parquet. bayes-lora tables {out} sums them up.")
        if found.left:
            say(f"{found.left} cells are left: the same command goes on.")
        for cell, why in found.failed.items():
            say(f"failed: {cell}: {why}")
    if found.failed:
        raise typer.Exit(1)
