"""`bayes-lora predict`: rows, with a fitted run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.options import DeviceOption, JsonFlag, NumSamplesOption, num_samples_of


def predict_command(
    run: Annotated[Path, typer.Argument(help="A folder that fit wrote.")],
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="Rows to predict, of images and recordings their folder; by default those the run was evaluated on.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the predictions, .jsonl.")] = None,
    num_samples: NumSamplesOption = None,
    draws: Annotated[Draws | None, typer.Option(help="As in fit; by default the run's.")] = None,
    at_mean: Annotated[bool, typer.Option("--mean", help="Predict at the posterior mean, the plain adapter.")] = False,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Predict rows with a fitted run: of a classification class probabilities, entropies and mutual information."""
    for option, value in (("--num-samples", num_samples), ("--draws", draws)):
        if at_mean and value is not None:
            raise ConfigurationError(f"--mean draws nothing, so {option} would do nothing. Drop one of the two.")
    drawn = None if num_samples is None else num_samples_of(num_samples)
    from rich.console import Console

    from bayes_lora.experiments.command_line.console import PREDICTIVE, print_metrics, print_predictions, say
    from bayes_lora.experiments.rows.rows import write_jsonl
    from bayes_lora.experiments.runs.device import resolve_device
    from bayes_lora.experiments.runs.outputs import check_output
    from bayes_lora.experiments.runs.predictions import described_rows, own_rows
    from bayes_lora.experiments.runs.runs import load_run
    from bayes_lora.experiments.tasks.folders import input_rows

    if output is not None:
        check_output(output, overwrite=overwrite)
    fitted = load_run(run, resolve_device(device))
    task = fitted.config.task
    rows = own_rows(run, task) if input_file is None else input_rows(task, input_file)
    data = fitted.encode(rows, with_labels=False)
    prediction = fitted.predict(data, num_samples=drawn, draws=draws, at_mean=at_mean, console=Console(stderr=True))
    by_name = input_file is not None and fitted.config.labels_are_names
    labels = task.family.labels_of(rows, task.label_column, task.label_names, by_name=by_name)
    likelihood = fitted.model.likelihood
    if labels is not None:
        prediction = likelihood.labelled(prediction, labels)
    labelled = labels is not None or task.family.reads_labels
    metrics = likelihood.metrics(prediction) if labelled else None
    described = described_rows(task, rows, prediction)
    if output is not None:
        write_jsonl(output, described)
    if as_json:
        found = {} if metrics is None else {"metrics": metrics}
        print(json.dumps({"run": str(run), **found, "predictions": described}))
        return
    print_predictions(task, described)
    if metrics is not None:
        print_metrics({"posterior mean" if at_mean else PREDICTIVE: metrics}, f"{len(rows)} labelled rows")
    if output is not None:
        say(f"{len(described)} predictions written to {output}.")
