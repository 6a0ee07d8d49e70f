"""What a recipe may set, fixed or along an axis of its grid, and the study and methods that come of it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.study import Study
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.inference import FitOptions
from bayes_lora.inference.finetuning.lora import LoRAOptions

OF_TRAINING = (
    *("epochs", "batch_size", "learning_rate", "head_learning_rate"),
    *("posterior_learning_rate", "likelihood_learning_rate"),
    *("weight_decay", "weight_decay_of", "warmup_ratio", "decay", "max_grad_norm", "precision", "group_by_length"),
    *("micro_batch_size", "scale_schedule", "scale_warmup", "scale_per_adapter", "log_every"),
)
"""Those of `FitOptions`."""

OF_LORA = {"rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "targets": "targets"}
"""Those of `LoRAOptions`, by the name that they have there."""

OF_STUDY = ("train_rows", "eval_rows", "held_out", "splits", "eval_split", "num_samples", "draws", "max_length")
"""Those of `Study`."""

SETTINGS = (*OF_TRAINING, *OF_LORA, *OF_STUDY)
"""All of them, in the order in which tables have them."""

_DROPOUT = 0.1  # as `bayes-lora compare` has it

Point = tuple[tuple[str, Any], ...]
"""Names of axes with a value for each."""


def make_study(source: RowsSource, base_model: str, values: Mapping[str, Any], **more: Any) -> Study:
    """The study that a recipe describes at one point of its grid.

    Args:
        source: where the rows are from.
        base_model: see `Study`.
        values: of some of `SETTINGS`; for the others the defaults of `Study`, with a LoRA dropout of 0.1.
        more: other fields of `Study`.

    Raises:
        ConfigurationError: a value outside its domain.
        TypeError: a value of the wrong kind.
    """
    of_lora = {field: values[name] for name, field in OF_LORA.items() if name in values}
    return Study(
        source=source,
        base_model=base_model,
        lora=LoRAOptions(**{"dropout": _DROPOUT, **of_lora}),
        training=FitOptions(**{name: values[name] for name in OF_TRAINING if name in values}),
        **{name: values[name] for name in OF_STUDY if name in values},
        **more,
    )


def at_point(method: Method, point: Mapping[str, Any]) -> Method:
    """A method of a recipe as it is at a point of the grid.

    Axes called ``method.option`` give it that option. So does an axis of the training that the method has a default of
    its own for, such as the learning rate of `full`: along that axis all methods move. What the recipe writes in the
    method's brackets stays.
    """
    given = dict(method.options)
    for option in method.spec.options:
        axis = f"{method.name}.{option.name}"
        if axis in point:
            given[option.name] = point[axis]
        elif option.name in point and option.name in OF_TRAINING and option.default is not None:
            given.setdefault(option.name, point[option.name])
    ordered = tuple((name, given[name]) for name in method.spec.option_names if name in given)
    return replace(method, options=ordered)


def resolved(path: str | None, folder: Path) -> str | None:
    """A path of a recipe: as it stands where it is absolute, else from a folder."""
    return None if path is None else str((folder / Path(path).expanduser()).resolve())
