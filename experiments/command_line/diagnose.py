"""`bayes-lora diagnose`: a run's posterior, looked at from every side."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.errors import RunExistsError
from bayes_lora.experiments.command_line.options import DeviceOption, JsonFlag

DATA_FILE, FINDINGS_FILE, FOLDER = "inference_data.nc", "findings.json", "diagnosis"


def diagnose_command(
    run: Annotated[Path, typer.Argument(help="A folder that fit or demo wrote.")],
    out: Annotated[Path | None, typer.Option(help=f"Folder to write; by default RUN/{FOLDER}.")] = None,
    num_samples: Annotated[int, typer.Option(help="Draws of the posterior, and of the prior.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier diagnosis.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write report.html about a run's posterior, its pictures, and all draws as netCDF for ArviZ."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.diagnose.diagnosis import diagnose
    from bayes_lora.experiments.diagnose.report import described, write_diagnosis
    from bayes_lora.experiments.runs.device import resolve_device
    from bayes_lora.files import write_json
    from bayes_lora.inference import save_inference_data

    folder = run / FOLDER if out is None else out
    if (folder / FINDINGS_FILE).exists() and not overwrite:
        raise RunExistsError(f"{folder} holds a diagnosis already. Choose another --out, or say --overwrite.")
    place, console = resolve_device(device), Console(stderr=True)
    found = diagnose(run, num_samples=num_samples, seed=seed, console=console, device=place)
    words = described(found)
    save_inference_data(found.data, folder / DATA_FILE)
    report = write_diagnosis(found, folder)
    write_json(folder / FINDINGS_FILE, words)  # last: it says that all of this is there
    if as_json:
        print(json.dumps({"report": str(report), **words}))
        return
    table = Table(title=f"{run}: what the diagnostics say", title_justify="left")
    for column in ("diagnostic", "verdict", "in words"):
        table.add_column(column)
    for name, finding in words["findings"].items():
        verdict = Text("look here", style="bold red") if finding["flagged"] else Text("no flag")
        table.add_row(Text(name), verdict, Text(finding["message"]))
    Console().print(table)
    say(f"Report: {report}. Draws for ArviZ: {folder / DATA_FILE}")
