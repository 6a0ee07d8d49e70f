"""`bayes-lora draws`: how many draws a run's predictive takes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.options import DeviceOption, JsonFlag, SeedOption, named_folder


def draws_command(
    runs: Annotated[list[str], typer.Argument(help="Folders that fit wrote; NAME=FOLDER to call one NAME.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; where it holds this study, it is gone on with.")],
    numbers: Annotated[str, typer.Option(help="Numbers of draws whose error is asked for.")] = "2,4,8,16,32",
    truth: Annotated[int, typer.Option(help="Independent draws that they are compared with.")] = 1024,
    compared: Annotated[int, typer.Option(help="Draws of each design, in predictions of so many of them.")] = 256,
    noise: Annotated[float, typer.Option(help="Multiplies the noise.")] = 1.0,
    rows: Annotated[int | None, typer.Option(help="The first so many of each run's own rows; by default all.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Measure the error of predictions from few draws: independent ones, designed ones, and the mean alone.

    It can be stopped at any time: the same command goes on with it.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.draws.measure import Plan
    from bayes_lora.experiments.draws.report import (
        PICTURE_FILE,
        RESULTS_FILE,
        TABLE_FILE,
        seconds_text,
        write_report,
    )
    from bayes_lora.experiments.draws.study import DrawsStudy, run_draws_study
    from bayes_lora.experiments.runs.device import resolve_device

    plan = Plan(_numbers(numbers), truth, compared, noise, seed)
    study = DrawsStudy(dict(map(named_folder, runs)), plan, rows)
    found = run_draws_study(study, out, console=Console(stderr=True), device=resolve_device(device))
    lines = write_report(found, plan, out)
    if as_json:
        print(json.dumps({"study": str(out), "table": lines, "seconds": seconds_text(found)}))
        return
    table = Table(title="root mean square errors over rows and predictions", title_justify="left")
    for column in lines[0]:
        table.add_column(Text(column), justify="left" if column == "run" else "right")
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    Console().print(table)
    for line in seconds_text(found):
        say(line)
    say(f"In {out}: {RESULTS_FILE}, {TABLE_FILE}, {PICTURE_FILE}.")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigurationError(f"--numbers {text!r} must be whole numbers and commas, such as 2,4,8.") from error
