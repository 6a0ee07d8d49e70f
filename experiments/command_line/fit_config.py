"""The run that the options of `bayes-lora fit` ask for."""

import re
from pathlib import Path
from typing import Any

import typer

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.options import num_samples_of, typed
from bayes_lora.experiments.compare.method_names import read_pairs
from bayes_lora.experiments.networks.trained_adapter import TrainedAdapter
from bayes_lora.experiments.runs.run_config import FIT_METHODS, RunConfig
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import TaskRows
from bayes_lora.inference import FitOptions
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.inference.guides.lora_guide import guide_kinds
from bayes_lora.inference.storage.posterior_files import SavedKind

# Options that MonteCLoRAConfig has under the same name, and that need no reading.
_OF_POSTERIOR = (
    *("num_components", "num_outer_samples", "sample_scale", "prior_concentration", "sampler", "objective"),
    *("normal_kl", "kl_weight", "cooperative_weight", "prior_scale", "kl_temperature"),
)
# Options of the network and its training, which a post hoc fit leaves alone.
_OF_NETWORK = (
    *("rank", "lora_alpha", "lora_dropout", "targets", "lr", "head_lr", "weight_decay", "weight_decay_of"),
    "two_phase",
)

_GUIDE = re.compile(r"(?P<kind>\w+)(\[(?P<settings>[^\[\]]*)\])?")


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
        # Where something else than rows is counted, the fit does it.
        num_train_examples=len(rows.train) if given["objective"] == "elbo" and rows.task.family.counts_rows else None,
    )
    training = FitOptions(
        epochs=given["epochs"],
        batch_size=given["batch_size"],
        learning_rate=given["lr"],
        head_learning_rate=given["head_lr"],
        posterior_learning_rate=given["posterior_lr"],
        weight_decay=given["weight_decay"],
        weight_decay_of=given["weight_decay_of"],
        seed=given["seed"],
        save_every=given["save_every"],
        phases="posterior" if adapter else "means_then_posterior" if given["two_phase"] else "joint",
        scale_schedule=given["scale_schedule"],
        scale_warmup=given["scale_warmup"],
        scale_per_adapter=given["scale_per_adapter"],
        micro_batch_size=given["micro_batch_size"],
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
        num_samples=num_samples_of(given["num_samples"]),
        draws=given["draws"],
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
