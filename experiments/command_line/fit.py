"""`bayes-lora fit`: one posterior, fitted, evaluated and saved."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bayes_lora.choices import ScaleScheduleKind, WeightDecayOf
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.options import (
    BaseModelOption,
    BatchSizeOption,
    DataDirOption,
    DeviceOption,
    DrawsOption,
    EpochsOption,
    EvalDirOption,
    EvalFileOption,
    JsonFlag,
    LabelColumnOption,
    LoRAAlphaOption,
    MaxLengthOption,
    NumSamplesOption,
    OverwriteFlag,
    RankOption,
    ScoringOption,
    SeedOption,
    TargetsOption,
    TaskOption,
    TaskTypeOption,
    TextColumnsOption,
    TrainDirOption,
    TrainFileOption,
    require_alone,
)


def fit_command(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; must not exist.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with an interrupted run in this folder; takes no option but --device and --json."),
    ] = None,
    task: TaskOption = None,
    data_dir: DataDirOption = None,
    train_file: TrainFileOption = None,
    eval_file: EvalFileOption = None,
    train_dir: TrainDirOption = None,
    eval_dir: EvalDirOption = None,
    text_columns: TextColumnsOption = None,
    label_column: LabelColumnOption = "label",
    task_type: TaskTypeOption = "classification",
    scoring: ScoringOption = None,
    base_model: BaseModelOption = "minilm",
    method: Annotated[str, typer.Option(help="One of: {fit_methods}.")] = "monteclora",
    guide: Annotated[
        str,
        typer.Option(
            help="Family of posterior, with --objective elbo: {guides}; settings in brackets, as "
            "in autoguide\\[autoguide=AutoLowRankMultivariateNormal,rank=8]."
        ),
    ] = "monteclora",
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a trained PEFT LoRA adapter, for --method monteclora_posthoc.")
    ] = None,
    epochs: EpochsOption = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the mean, LoRA-B and the head.")] = 3e-4,
    head_lr: Annotated[float | None, typer.Option(help="Peak learning rate of the head; by default --lr.")] = None,
    posterior_lr: Annotated[float, typer.Option(help="Peak learning rate of log alpha and log v.")] = 1e-2,
    weight_decay: Annotated[float, typer.Option(help="Of the network's trained parameters.")] = 0.0,
    weight_decay_of: Annotated[
        WeightDecayOf,
        typer.Option(
            help="all; b_and_head, all but LoRA-A, which objective elbo has a prior of; adapters, LoRA alone."
        ),
    ] = "all",
    batch_size: BatchSizeOption = 32,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(help="Examples in one pass of the network, where a step's are too many for the memory."),
    ] = None,
    two_phase: Annotated[
        bool, typer.Option("--two-phase", help="First half of the steps: the network; second: the posterior.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints, for --resume.")] = 100,
    limit: Annotated[int | None, typer.Option(help="Use the first N training and N validation rows only.")] = None,
    train_rows: Annotated[int | None, typer.Option(help="Use the first N training rows only.")] = None,
    max_length: MaxLengthOption = None,
    rank: RankOption = 8,
    lora_alpha: LoRAAlphaOption = 16,
    lora_dropout: Annotated[float, typer.Option(help="LoRA dropout.")] = 0.0,
    targets: TargetsOption = "attention",
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
    kl_temperature: Annotated[
        float | None,
        typer.Option(
            "--kl-temperature",
            "--temperature",
            help="Weight of the KL, of objective elbo; --temperature is its old name.",
        ),
    ] = None,
    num_samples: NumSamplesOption = "32",
    draws: DrawsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fit a posterior over the LoRA adapters of a transformer, evaluate it and save it."""
    if (out is None) == (resume is None):
        raise ConfigurationError("Give --out, the folder of a new run, or --resume, that of an interrupted one.")
    from rich.console import Console

    from bayes_lora.experiments.command_line.fit_config import run_config
    from bayes_lora.experiments.command_line.rows import rows_source
    from bayes_lora.experiments.runs.device import resolve_device
    from bayes_lora.experiments.runs.runs import fit_run, resume_run

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
    from bayes_lora.experiments.command_line.console import PREDICTIVE, print_metrics, say

    post_hoc = metrics["method"] == "monteclora_posthoc"
    before, after = ("before: the adapter", "after: predictive") if post_hoc else ("point estimate", PREDICTIVE)
    compared = {before: metrics["point"], after: metrics["posterior_predictive"]}
    print_metrics(compared, f"{metrics['num_train']} training rows, {metrics['num_validation']} validation rows")
    say(f"Saved in {out}. Predict with: bayes-lora predict {out} --input ROWS")
