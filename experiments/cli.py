"""The command line, `bayes-lora`."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import BayesLoRAError, ConfigurationError, DataError
from bayes_lora.experiments.demo import run_demo
from bayes_lora.experiments.rows import Row, write_jsonl
from bayes_lora.experiments.runs import (
    METHODS,
    LoRAOptions,
    RunConfig,
    described_rows,
    fit_run,
    load_run,
    own_rows,
    resume_run,
)
from bayes_lora.experiments.sources import RowsSource
from bayes_lora.experiments.tasks import unlabelled_rows
from bayes_lora.inference import FitOptions

app = typer.Typer(
    help="A posterior over LoRA adapters: fit a transformer, and know how sure it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]


@app.command("fit")
def fit_command(
    out: Annotated[Path | None, typer.Option(help="Folder of the run; must not exist.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with an interrupted run in this folder; no other option counts then.")
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
    epochs: Annotated[int, typer.Option(help="Passes over the training rows.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the mean, LoRA-B and the head.")] = 3e-4,
    posterior_lr: Annotated[float, typer.Option(help="Peak learning rate of log alpha and log v.")] = 1e-2,
    weight_decay: Annotated[float, typer.Option(help="Of the network's trained parameters.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints, for --resume.")] = 100,
    limit: Annotated[int | None, typer.Option(help="Use the first N training and N validation rows only.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row is cut to; by default the task's.")] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 8,
    lora_alpha: Annotated[int, typer.Option(help="LoRA alpha.")] = 16,
    lora_dropout: Annotated[float, typer.Option(help="LoRA dropout.")] = 0.0,
    targets: Annotated[str, typer.Option(help="attention, all-linear, or module names and commas.")] = "attention",
    objective: Annotated[Literal["paper", "elbo"], typer.Option(help="The paper's loss, or the ELBO.")] = "paper",
    sample_scale: Annotated[float, typer.Option(help="Epsilon, the scale of the noise.")] = 5e-3,
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
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fit a posterior over the LoRA adapters of a transformer, evaluate it and save it."""
    if (out is None) == (resume is None):
        raise ConfigurationError("Give --out, the folder of a new run, or --resume, that of an interrupted one.")
    if resume is not None:
        _report_fit(resume, resume_run(resume, console=Console(stderr=True)), as_json=as_json)
        return
    assert out is not None
    if method not in METHODS:
        raise ConfigurationError(f"--method {method!r} is unknown. The methods are {', '.join(METHODS)}.")
    source = RowsSource(
        task=task,
        data_dir=_resolved(data_dir),
        train_file=_resolved(train_file),
        eval_file=_resolved(eval_file),
        text_columns=tuple(name.strip() for name in text_columns.split(",")) if text_columns else (),
        label_column=label_column,
        limit=limit,
        seed=seed,
    )
    rows = source.load()
    posterior = MonteCLoRAConfig(
        num_components=num_components,
        num_outer_samples=num_outer_samples,
        sample_scale=sample_scale,
        prior_concentration=prior_concentration,
        init_concentration="random" if init_concentration == "random" else _number(init_concentration),
        degrees_of_freedom=_degrees_of_freedom(degrees_of_freedom),
        mixture="sparse" if method == "monteclora_sparse" else "dense",
        sampler=sampler,
        objective=objective,
        kl_weight=kl_weight,
        cooperative_weight=cooperative_weight,
        num_train_examples=len(rows.train) if objective == "elbo" else None,
        prior_scale=prior_scale,
        temperature=temperature,
    )
    training = FitOptions(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        posterior_learning_rate=posterior_lr,
        weight_decay=weight_decay,
        seed=seed,
        save_every=save_every,
    )
    local = Path(base_model).expanduser()
    config = RunConfig(
        task=rows.task,
        base_model=str(local.resolve()) if local.is_dir() else base_model,
        method=method,
        lora=LoRAOptions(rank=rank, alpha=lora_alpha, dropout=lora_dropout, targets=targets),
        posterior=posterior,
        training=training,
        num_samples=num_samples,
        max_length=max_length,
        source=source,
    )
    _report_fit(out, fit_run(config, rows, out, overwrite=overwrite, console=Console(stderr=True)), as_json=as_json)


def _report_fit(out: Path, metrics: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(out), **metrics}))
        return
    print_metrics(metrics, f"{metrics['num_train']} training rows, {metrics['num_validation']} validation rows")
    Console().print(f"Saved in {out}. Predict with: bayes-lora predict {out} --input ROWS.jsonl", soft_wrap=True)


@app.command("predict")
def predict_command(
    run: Annotated[Path, typer.Argument(help="A folder that fit wrote.")],
    input_file: Annotated[
        Path | None, typer.Option("--input", help="Rows to predict; by default those the run was evaluated on.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the predictions, .jsonl.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="Posterior draws; by default the run's.")] = None,
    at_mean: Annotated[bool, typer.Option("--mean", help="Predict at the posterior mean, the plain adapter.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Predict rows with a fitted run: class probabilities, entropies and mutual information."""
    if output is not None and output.exists() and not overwrite:
        raise DataError(f"{output} exists already. Choose another --output, or say --overwrite.")
    fitted = load_run(run)
    task = fitted.config.task
    rows = own_rows(run, task) if input_file is None else unlabelled_rows(task, input_file)
    console = Console(stderr=True)
    prediction = fitted.predict(
        rows, with_labels=input_file is None, num_samples=num_samples, at_mean=at_mean, console=console
    )
    described = described_rows(task, rows, prediction)
    if output is not None:
        write_jsonl(output, described)
    if as_json:
        print(json.dumps({"run": str(run), "predictions": described}))
    else:
        _print_predictions(task.columns, described)
        if output is not None:
            Console().print(f"{len(described)} predictions written to {output}.", soft_wrap=True)


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
        Console().print(f"Report: {out / 'report.html'}", soft_wrap=True)


def main() -> None:
    """Entry point: an error of this library is one message and exit status 1, not a traceback."""
    # peft asks transformers by a name that its next major version drops: nothing a user can act on.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        app()
    except BayesLoRAError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {type(error).__name__}:", end=" ")
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


def print_metrics(metrics: dict[str, Any], title: str) -> None:
    """The point estimate beside the posterior predictive, as a table."""
    table = Table(title=title, title_justify="left")
    for column in ("", "accuracy %", "NLL (nats)", "ECE % (15 bins)", "Brier"):
        table.add_column(column, justify="right" if column else "left")
    for key, name in (("point", "point estimate"), ("posterior_predictive", "posterior predictive")):
        row = metrics[key]
        table.add_row(
            name, f"{100 * row['accuracy']:.1f}", f"{row['nll']:.4f}", f"{100 * row['ece']:.1f}", f"{row['brier']:.4f}"
        )
    Console().print(table)


def _print_predictions(columns: tuple[str, ...], described: list[Row], most: int = 10) -> None:
    title = f"{min(most, len(described))} of {len(described)} predictions; entropy and mutual information (MI) in nats"
    table = Table(title=title, title_justify="left", expand=True)
    for column in columns:
        table.add_column(column, no_wrap=True, ratio=1)
    for column in ("prediction", "prob.", "entropy", "MI"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in described[:most]:
        numbers = f"{row['probs'][row['prediction']]:.3f}", f"{row['total_entropy']:.3f}"
        table.add_row(
            *(row[column] for column in columns), row["prediction"], *numbers, f"{row['mutual_information']:.4f}"
        )
    Console().print(table)


def _resolved(path: Path | None) -> str | None:
    """The full path, so that a run can be taken up and used from anywhere."""
    return None if path is None else str(path.expanduser().resolve())


def _degrees_of_freedom(text: str | None) -> Any:
    return text if text in (None, "rank", "in_features") else _number(text)


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is not a number.") from error
