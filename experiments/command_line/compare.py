"""`bayes-lora compare`: many methods on one task."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_lora.choices import EvalSplit, Precision, Seeding, Splits
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
    RankOption,
    ScoringOption,
    TargetsOption,
    TaskOption,
    TaskTypeOption,
    TextColumnsOption,
    TrainDirOption,
    TrainFileOption,
    seed_numbers,
    typed,
)

# The last two are what docs/comparison.md recommends, and to try.
_DEFAULT = (
    "base_rate,map,temperature,early_stopping,lora[weight_decay=10],mc_dropout,checkpoint_ensemble,laplace,laplace_last_layer,"
    "swag,blob,monteclora,monteclora[objective=elbo,kl_temperature=0.01,sample_scale=0.05],"
    "monteclora[objective=elbo,kl_temperature=0.01,sample_scale=0.05,weight_decay=10]"
)
# What --quick says of each option that was not typed.
_QUICK: dict[str, Any] = {"seeds": "0", "epochs": 1, "train_rows": 200, "eval_rows": 100, "num_samples": 4}


def compare_command(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the study; where it holds this study, it is gone on with.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Some of {methods}, separated by commas; options in brackets, as in "
            "laplace\\[link=probit]; after it +calibrated or +temperature, chosen on held-out rows, or +mean, for "
            "no draws."
        ),
    ] = _DEFAULT,
    reference: Annotated[
        str, typer.Option(help="The methods that each of the others is tested against.")
    ] = "map,temperature",
    short: Annotated[
        list[str] | None,
        typer.Option(help="NAME=METHOD, repeated: the methods of overview.png, and how they are called there."),
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
    outside: Annotated[
        str | None, typer.Option(help="Another task, whose validation rows are out of distribution here.")
    ] = None,
    outside_file: Annotated[
        list[str] | None,
        typer.Option(help="FILE or NAME=FILE, repeated: further rows out of distribution here, with no labels needed."),
    ] = None,
    base_model: BaseModelOption = "minilm",
    seeds: Annotated[str, typer.Option(help="Numbers separated by commas; more can be added later.")] = "0,1,2",
    epochs: EpochsOption = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    batch_size: BatchSizeOption = 32,
    precision: Annotated[
        Precision, typer.Option(help="Of the network's passes: bfloat16, by autocast, is faster where it is built in.")
    ] = "float32",
    group_by_length: Annotated[
        bool, typer.Option("--group-by-length", help="Train on batches of rows of similar length: less padding.")
    ] = False,
    train_rows: Annotated[int | None, typer.Option(help="Use so many of the training rows.")] = None,
    held_out: Annotated[
        float, typer.Option(help="Part of these that nothing is trained on: temperatures and scales are chosen there.")
    ] = 0.1,
    splits: Annotated[
        Splits, typer.Option(help="per_seed: rows to train on and to choose by differ by seed; shared: they do not.")
    ] = "per_seed",
    seeding: Annotated[
        Seeding, typer.Option(help="separate: head, adapters and order of rows are independent; shared: as in 0.1.")
    ] = "separate",
    eval_split: Annotated[
        EvalSplit, typer.Option(help="validation, or held_out to choose settings without looking at it.")
    ] = "validation",
    eval_rows: Annotated[int | None, typer.Option(help="Evaluate on the first N rows only.")] = None,
    num_samples: Annotated[int, typer.Option(help="Draws of a prediction.")] = 16,
    draws: DrawsOption = None,
    max_length: MaxLengthOption = None,
    rank: RankOption = 8,
    lora_alpha: LoRAAlphaOption = 16,
    lora_dropout: Annotated[float, typer.Option(help="LoRA dropout, of all training and of MC dropout.")] = 0.1,
    targets: TargetsOption = "attention",
    workers: Annotated[
        int, typer.Option(help="Processes that share the work; where there are several, each has one core.")
    ] = 1,
    device: DeviceOption = "auto",
    max_hours: Annotated[
        float | None, typer.Option(help="Start nothing more after so long; the same command goes on later.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look: 200 training rows, 100 evaluated, 1 epoch, 1 seed, 4 draws.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train and predict with many methods on the same rows and seeds, and write tables, figures and tests.

    What one method has trained, those that start from it share. It can be stopped at any time: the same command goes
    on with it.
    """
    from rich.console import Console

    from bayes_lora.experiments.command_line.compare_results import (
        as_json_object,
        print_scores,
        reference_methods,
        short_names,
    )
    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.command_line.rows import outside_set, rows_source
    from bayes_lora.experiments.compare.methods import parse_methods
    from bayes_lora.experiments.compare.report import FILES, write_report
    from bayes_lora.experiments.compare.running import run_study
    from bayes_lora.experiments.compare.study import Study, conventions_of
    from bayes_lora.experiments.runs.device import resolve_device
    from bayes_lora.inference import FitOptions
    from bayes_lora.inference.finetuning.lora import LoRAOptions

    given = dict(context.params) | {
        name: value
        for name, value in {**(_QUICK if quick else {}), **conventions_of(out)}.items()
        if name not in typed(context)
    }
    wanted = parse_methods(methods)
    # Beside rows of one's own it is the folder of the task outside.
    of_task = None if (train_file or train_dir) and outside else data_dir
    source = rows_source({**given, "data_dir": of_task, "limit": None, "train_rows": None, "seed": 0})
    if "methods" not in typed(context):
        family = source.family
        wanted = [method for method in wanted if method.refusal(family) is None]
        wanted = [method for method in wanted if family.takes_temperature or not method.tempered]
    against = reference_methods(reference, wanted, typed(context))
    shown = short_names(short or [], wanted)
    study = Study(
        source=source,
        outside=outside,
        outside_dir=data_dir,
        outside_files=tuple(map(outside_set, outside_file or [])),
        base_model=base_model,
        lora=LoRAOptions(rank, lora_alpha, lora_dropout, targets),
        training=FitOptions(
            epochs=given["epochs"],
            batch_size=batch_size,
            learning_rate=lr,
            precision=precision,
            group_by_length=group_by_length,
            seeding=given["seeding"],
        ),
        seeds=seed_numbers(given["seeds"]),
        num_samples=given["num_samples"],
        draws=given["draws"],
        train_rows=given["train_rows"],
        held_out=held_out,
        splits=given["splits"],
        eval_split=eval_split,
        eval_rows=given["eval_rows"],
        max_length=max_length,
    )
    console = Console(stderr=True)
    place = resolve_device(device)
    results = run_study(study, wanted, out, console=console, workers=workers, max_hours=max_hours, device=place)
    with console.status("Tables, tests and figures"):
        found = write_report(results, against, shown)
    if as_json:
        print(json.dumps(as_json_object(results, found), allow_nan=False))
        raise typer.Exit(1 if results.failed else 0)
    if found:
        print_scores(found)
        say(f"In {out}: {', '.join(path.name for name in FILES for path in sorted(out.glob(name)))}.")
    if results.missing:
        say(f"{len(results.missing)} of {len(wanted) * len(study.seeds)} jobs are left: the same command goes on.")
    for (method, seed), why in results.failed.items():
        say(f"failed: {method.label}, seed {seed}: {why}")
    if results.failed:
        raise typer.Exit(1)
