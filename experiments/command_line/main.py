"""The command line, `bayes-lora`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from bayes_lora import __version__
from bayes_lora.errors import BayesLoRAError, ConfigurationError
from bayes_lora.experiments import ignore_known_warnings
from bayes_lora.experiments.command_line.bench import bench_command
from bayes_lora.experiments.command_line.compare import compare_command
from bayes_lora.experiments.command_line.console import print_metrics, print_predictions, say
from bayes_lora.experiments.command_line.diagnose import diagnose_command
from bayes_lora.experiments.command_line.ground_truth import ground_truth_command
from bayes_lora.experiments.command_line.options import require_alone, rows_source, run_config
from bayes_lora.experiments.command_line.push import push_command
from bayes_lora.experiments.demo.demo import run_demo
from bayes_lora.experiments.rows.rows import write_jsonl
from bayes_lora.experiments.runs.device import DeviceOption, resolve_device
from bayes_lora.experiments.runs.outputs import check_output
from bayes_lora.experiments.runs.predictions import described_rows, own_rows
from bayes_lora.experiments.runs.run_config import METHODS
from bayes_lora.experiments.runs.runs import fit_run, load_run, resume_run
from bayes_lora.experiments.tasks.tasks import checked_rows
from bayes_lora.inference.training.scale_schedule import ScaleScheduleKind

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]

_PREDICTIVE = "posterior predictive"


def _print_version(asked: bool) -> None:
    if asked:
        print(f"bayes-lora {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # its callback does the work
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """A posterior over LoRA adapters: fit a transformer, and know how sure it is."""


@app.command("fit")
def fit_command(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; must not exist.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with an interrupted run in this folder; takes no option but --device and --json."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="mrpc, rte, cola, wic or boolq.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Reads <data-dir>/<task>/{train,validation}.jsonl.gz instead of the hub.")
    ] = None,
    train_file: Annotated[Path | None, typer.Option(help="Your own rows: .jsonl, .jsonl.gz or .csv.")] = None,
    eval_file: Annotated[
        Path | None, typer.Option(help="Rows to evaluate on; by default a tenth of --train-file.")
    ] = None,
    text_columns: Annotated[str | None, typer.Option(help="One column, or two separated by a comma.")] = None,
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
    base_model: Annotated[str, typer.Option(help="Hub name, local folder, or minilm.")] = "minilm",
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(METHODS)}.")] = "monteclora",
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a trained PEFT LoRA adapter, for --method monteclora_posthoc.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training rows.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the mean, LoRA-B and the head.")] = 3e-4,
    posterior_lr: Annotated[float, typer.Option(help="Peak learning rate of log alpha and log v.")] = 1e-2,
    weight_decay: Annotated[float, typer.Option(help="Of the network's trained parameters.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    two_phase: Annotated[
        bool, typer.Option("--two-phase", help="First half of the steps: the network; second: the posterior.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints, for --resume.")] = 100,
    limit: Annotated[int | None, typer.Option(help="Use the first N training and N validation rows only.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row is cut to; by default the task's.")] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 8,
    lora_alpha: Annotated[int, typer.Option(help="LoRA alpha.")] = 16,
    lora_dropout: Annotated[float, typer.Option(help="LoRA dropout.")] = 0.0,
    targets: Annotated[str, typer.Option(help="attention, all-linear, or module names and commas.")] = "attention",
    objective: Annotated[Literal["paper", "elbo"], typer.Option(help="The paper's loss, or the ELBO.")] = "paper",
    normal_kl: Annotated[
        Literal["sampled", "expected"], typer.Option(help="KL of the noise: at the drawn Sigma, or averaged over it.")
    ] = "sampled",
    sample_scale: Annotated[float, typer.Option(help="Epsilon, the scale of the noise.")] = 5e-3,
    scale_schedule: Annotated[
        ScaleScheduleKind, typer.Option(help="How epsilon moves in training, up to --sample-scale.")
    ] = "constant",
    scale_warmup: Annotated[float, typer.Option(help="Part of the steps it rises over (linear, cosine).")] = 0.5,
    scale_per_adapter: Annotated[
        bool, typer.Option("--scale-per-adapter", help="Weigh epsilon by the size of each adapter's mean.")
    ] = False,
    num_components: Annotated[int, typer.Option(help="N, mixture components.")] = 4,
    num_outer_samples: Annotated[int, typer.Option(help="M, outer draws.")] = 1,
    degrees_of_freedom: Annotated[str | None, typer.Option(help="rank, in_features or a number.")] = None,
    sampler: Annotated[Literal["collapsed", "explicit"], typer.Option(help="How the mixture is drawn.")] = "collapsed",
    prior_concentration: Annotated[float, typer.Option(help="Of the Dirichlet prior.")] = 1.0,
    init_concentration: Annotated[str, typer.Option(help="Where alpha starts: a number, or random.")] = "1.0",
    kl_weight: Annotated[float | None, typer.Option(help="Eta, of objective paper.")] = None,
    cooperative_weight: Annotated[float | None, typer.Option(help="Of objective paper.")] = None,
    prior_scale: Annotated[float | None, typer.Option(help="Standard deviation on A, of objective elbo.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Weight of the KL, of objective elbo.")] = None,
    num_samples: Annotated[int, typer.Option(help="Posterior draws of the evaluation.")] = 32,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: DeviceOption = "auto",
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fit a posterior over the LoRA adapters of a transformer, evaluate it and save it."""
    if (out is None) == (resume is None):
        raise ConfigurationError("Give --out, the folder of a new run, or --resume, that of an interrupted one.")
    place, console = resolve_device(device), Console(stderr=True)
    if resume is not None:
        require_alone(context, "resume", "device", "as_json")
        _report_fit(resume, resume_run(resume, console=console, device=place), as_json=as_json)
        return
    assert out is not None
    # Typer wants every option as a parameter; they are read by name, fifty at once.
    source = rows_source(context.params)
    rows = source.load()
    config = run_config(context, source, rows)
    _report_fit(out, fit_run(config, rows, out, overwrite=overwrite, console=console, device=place), as_json=as_json)


def _report_fit(out: Path, metrics: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(out), **metrics}))
        return
    post_hoc = metrics["method"] == "monteclora_posthoc"
    before, after = ("before: the adapter", "after: predictive") if post_hoc else ("point estimate", _PREDICTIVE)
    compared = {before: metrics["point"], after: metrics["posterior_predictive"]}
    print_metrics(compared, f"{metrics['num_train']} training rows, {metrics['num_validation']} validation rows")
    say(f"Saved in {out}. Predict with: bayes-lora predict {out} --input ROWS.jsonl")


@app.command("predict")
def predict_command(
    run: Annotated[Path, typer.Argument(help="A folder that fit wrote.")],
    input_file: Annotated[
        Path | None, typer.Option("--input", help="Rows to predict; by default those the run was evaluated on.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the predictions, .jsonl.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="Posterior draws; by default the run's.")] = None,
    at_mean: Annotated[bool, typer.Option("--mean", help="Predict at the posterior mean, the plain adapter.")] = False,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Predict rows with a fitted run: class probabilities, entropies and mutual information."""
    if at_mean and num_samples is not None:
        raise ConfigurationError("--mean draws nothing, so --num-samples would do nothing. Drop one of the two.")
    if output is not None:
        check_output(output, overwrite=overwrite)
    fitted = load_run(run, resolve_device(device))
    task = fitted.config.task
    rows = own_rows(run, task) if input_file is None else checked_rows(task, input_file, labelled=False)
    data = fitted.encode(rows, with_labels=False)
    prediction = fitted.predict(data, num_samples=num_samples, at_mean=at_mean, console=Console(stderr=True))
    by_name = input_file is not None and fitted.config.labels_are_names
    labels = task.family.labels_of(rows, task.label_column, task.label_names, by_name=by_name)
    likelihood = fitted.model.likelihood
    prediction = likelihood.prediction(prediction.logits, labels)
    metrics = None if labels is None else likelihood.metrics(prediction)
    described = described_rows(task, rows, prediction)
    if output is not None:
        write_jsonl(output, described)
    if as_json:
        found = {} if metrics is None else {"metrics": metrics}
        print(json.dumps({"run": str(run), **found, "predictions": described}))
        return
    print_predictions(task.columns, described)
    if metrics is not None:
        print_metrics({"posterior mean" if at_mean else _PREDICTIVE: metrics}, f"{len(rows)} labelled rows")
    if output is not None:
        say(f"{len(described)} predictions written to {output}.")


app.command("push")(push_command)
app.command("bench")(bench_command)
app.command("compare")(compare_command)
app.command("diagnose")(diagnose_command)
app.command("ground-truth")(ground_truth_command)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fit minilm on an embedded task whose true probabilities are known, and write report.html."""
    metrics = run_demo(out, seed=seed, overwrite=overwrite, console=Console(stderr=True))
    if as_json:
        print(json.dumps({"report": str(out / "report.html"), **metrics}))
    else:
        say(f"Report: {out / 'report.html'}")


def main() -> None:
    """Entry point: an error of this library is one message and exit status 1, not a traceback."""
    ignore_known_warnings()
    try:
        app()
    except BayesLoRAError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {type(error).__name__}:", end=" ")
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
