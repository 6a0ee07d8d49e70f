"""`bayes-lora fit`: one posterior, fitted, evaluated and saved."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.console import PREDICTIVE, print_metrics, say
from bayes_lora.experiments.command_line.options import (
    BaseModelOption,
    BatchSizeOption,
    DataDirOption,
    DeviceOption,
    EpochsOption,
    EvalFileOption,
    JsonFlag,
    LabelColumnOption,
    LoRAAlphaOption,
    MaxLengthOption,
    OverwriteFlag,
    RankOption,
    SeedOption,
    TargetsOption,
    TaskOption,
    TaskTypeOption,
    TextColumnsOption,
    TrainFileOption,
    rows_source,
    typed,
)
from bayes_lora.experiments.compare.method_names import read_pairs
from bayes_lora.experiments.networks.trained_adapter import TrainedAdapter
from bayes_lora.experiments.runs.device import resolve_device
from bayes_lora.experiments.runs.run_config import FIT_METHODS, RunConfig
from bayes_lora.experiments.runs.runs import fit_run, resume_run
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import TaskRows
from bayes_lora.inference import FitOptions
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.inference.guides.lora_guide import guide_kinds
from bayes_lora.inference.storage.posterior_files import SavedKind
from bayes_lora.inference.training.fit_options import WeightDecayOf
from bayes_lora.inference.training.scale_schedule import ScaleScheduleKind

# Options that MonteCLoRAConfig has under the same name, and that need no reading.
_OF_POSTERIOR = (
    *("num_components", "num_outer_samples", "sample_scale", "prior_concentration", "sampler", "objective"),
    *("normal_kl", "kl_weight", "cooperative_weight", "prior_scale", "kl_temperature"),
)
# Options of the network and its training, which a post hoc fit leaves alone.
_OF_NETWORK = ("rank", "lora_alpha", "lora_dropout", "targets", "lr", "weight_decay", "weight_decay_of", "two_phase")


_GUIDE = re.compile(r"(?P<kind>\w+)(\[(?P<settings>[^\[\]]*)\])?")


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
    text_columns: TextColumnsOption = None,
    label_column: LabelColumnOption = "label",
    task_type: TaskTypeOption = "classification",
    base_model: BaseModelOption = "minilm",
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(FIT_METHODS)}.")] = "monteclora",
    guide: Annotated[
        str,
        typer.Option(
            help=f"Family of posterior, with --objective elbo: {', '.join(guide_kinds())}; settings in brackets, as "
            "in autoguide\\[autoguide=AutoLowRankMultivariateNormal,rank=8]."
        ),
    ] = "monteclora",
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a trained PEFT LoRA adapter, for --method monteclora_posthoc.")
    ] = None,
    epochs: EpochsOption = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the mean, LoRA-B and the head.")] = 3e-4,
    posterior_lr: Annotated[float, typer.Option(help="Peak learning rate of log alpha and log v.")] = 1e-2,
    weight_decay: Annotated[float, typer.Option(help="Of the network's trained parameters.")] = 0.0,
    weight_decay_of: Annotated[
        WeightDecayOf, typer.Option(help="all, or b_and_head: all but LoRA-A, which has the prior of objective elbo.")
    ] = "all",
    batch_size: BatchSizeOption = 32,
    two_phase: Annotated[
        bool, typer.Option("--two-phase", help="First half of the steps: the network; second: the posterior.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints, for --resume.")] = 100,
    limit: Annotated[int | None, typer.Option(help="Use the first N training and N validation rows only.")] = None,
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
    num_samples: Annotated[int, typer.Option(help="Posterior draws of the evaluation.")] = 32,
    seed: SeedOption = 0,
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
    before, after = ("before: the adapter", "after: predictive") if post_hoc else ("point estimate", PREDICTIVE)
    compared = {before: metrics["point"], after: metrics["posterior_predictive"]}
    print_metrics(compared, f"{metrics['num_train']} training rows, {metrics['num_validation']} validation rows")
    say(f"Saved in {out}. Predict with: bayes-lora predict {out} --input ROWS.jsonl")


def run_config(context: typer.Context, source: RowsSource, rows: TaskRows) -> RunConfig:
    """The run that the options ask for, on these rows.

    Raises:
        ConfigurationError: an option has a value that it cannot have, or would do nothing.
        AdapterError: --adapter is no LoRA adapter.
    """
    given = context.params
    method = given["method"]
    if method not in FIT_METHODS:
        raise ConfigurationError(f"--method {method!r} is unknown. The methods are {', '.join(FIT_METHODS)}.")
    adapter = _trained_adapter(context)
    base_model = given["base_model"]
    if adapter is not None and "base_model" not in typed(context):
        base_model = adapter.base_model or base_model
    guide = _guide(context)
    posterior = MonteCLoRAConfig(
        **{name: given[name] for name in _OF_POSTERIOR},
        init_concentration=_number_or("--init-concentration", given["init_concentration"], "random"),
        degrees_of_freedom=_number_or("--degrees-of-freedom", given["degrees_of_freedom"], "rank", "in_features"),
        mixture="sparse" if method == "monteclora_sparse" else "dense",
        num_train_examples=len(rows.train) if given["objective"] == "elbo" else None,
    )
    training = FitOptions(
        epochs=given["epochs"],
        batch_size=given["batch_size"],
        learning_rate=given["lr"],
        posterior_learning_rate=given["posterior_lr"],
        weight_decay=given["weight_decay"],
        weight_decay_of=given["weight_decay_of"],
        seed=given["seed"],
        save_every=given["save_every"],
        phases="posterior" if adapter else "means_then_posterior" if given["two_phase"] else "joint",
        scale_schedule=given["scale_schedule"],
        scale_warmup=given["scale_warmup"],
        scale_per_adapter=given["scale_per_adapter"],
    )
    local = Path(base_model).expanduser()
    lora = LoRAOptions(given["rank"], given["lora_alpha"], given["lora_dropout"], given["targets"])
    return RunConfig(
        task=rows.task,
        base_model=str(local.resolve()) if local.is_dir() else base_model,
        method=method,
        lora=adapter or lora,
        posterior=posterior,
        guide=guide,
        training=training,
        num_samples=given["num_samples"],
        max_length=given["max_length"],
        source=source,
    )


def _guide(context: typer.Context) -> SavedKind:
    """What --guide says.

    Raises:
        ConfigurationError: it is not understood, there is none of that kind, or an option does nothing under it.
    """
    written = context.params["guide"]
    match = _GUIDE.fullmatch(written)
    if match is None or match["kind"] not in guide_kinds():
        raise ConfigurationError(
            f"--guide {written!r}: the guides are {', '.join(guide_kinds())}; write name, or name[setting=value,...]."
        )
    kind = guide_kinds()[match["kind"]]
    idle = [option for name, option in typed(context).items() if name in kind.unused_options]
    if idle:
        raise ConfigurationError(
            f"--guide {match['kind']} does not use what {', '.join(idle)} says. Drop it, or take --guide monteclora."
        )
    settings = {name: value for _, name, value in read_pairs(match["settings"] or "")}
    return SavedKind(match["kind"], settings)


def require_alone(context: typer.Context, name: str, *besides: str) -> None:
    """An option beside which no other one counts: that none was typed, save those in `besides`.

    Raises:
        ConfigurationError: names those that were.
    """
    others = [option for parameter, option in typed(context).items() if parameter not in (name, *besides)]
    if others:
        raise ConfigurationError(
            f"--{name} goes on with a run as it was started, so {', '.join(others)} would do nothing. Drop "
            f"{'it' if len(others) == 1 else 'them'}, or start a new run with --out."
        )


def _trained_adapter(context: typer.Context) -> TrainedAdapter | None:
    given = context.params
    post_hoc, folder = given["method"] == "monteclora_posthoc", given["adapter"]
    if post_hoc and folder is None:
        raise ConfigurationError("--method monteclora_posthoc needs --adapter, the folder of a trained LoRA adapter.")
    if folder is None:
        return None
    if not post_hoc:
        raise ConfigurationError("--adapter belongs to --method monteclora_posthoc. Say that, or drop it.")
    idle = [option for name, option in typed(context).items() if name in _OF_NETWORK]
    if idle:
        raise ConfigurationError(
            f"--method monteclora_posthoc leaves the network as it is in --adapter, so {', '.join(idle)} would do "
            "nothing. Drop what does nothing; --posterior-lr is the learning rate that counts."
        )
    return TrainedAdapter.of(Path(folder))


def _number_or(option: str, text: str | None, *words: str) -> Any:
    if text is None or text in words:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ConfigurationError(f"{option} {text!r} must be a number, or {' or '.join(words)}.") from error
