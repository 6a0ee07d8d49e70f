"""Regression: one real number for each row, or several."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.family import TaskFamily, written
from bayes_lora.experiments.rows.rows import Row

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood


class Regression(TaskFamily):
    """Labels are numbers, or lists of as many numbers for every row; their noise is Gaussian, of learned size.

    Names of labels are those of several outputs: their places in the list.
    """

    name = "regression"
    output_columns = ("prediction", "std", "noise_std", "epistemic_std", "low_90", "high_90", "point_prediction")
    table_note = "; low and high bound the central 90 % of the posterior predictive"

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """Gaussian."""
        from bayes_lora.models import GaussianRegression

        return GaussianRegression(learned=True, num_outputs=max(1, len(label_names)))

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One output for each number."""
        return {"num_labels": max(1, len(label_names)), "problem_type": "regression"}

    def describe(self, prediction: Any, index: int, label_names: Sequence[str]) -> Row:
        """Mean of the posterior predictive, its standard deviation and the parts of that, and its interval."""
        low, high = prediction.interval_90
        parts = {
            "prediction": prediction.mean[index],
            "std": prediction.total_variance[index].sqrt(),
            "noise_std": prediction.noise_variance.sqrt(),
            "epistemic_std": prediction.epistemic_variance[index].sqrt(),
            "low_90": low[index],
            "high_90": high[index],
        }
        return {name: _plain(values) for name, values in parts.items()}

    def describe_point(self, point: Any, index: int, label_names: Sequence[str]) -> Row:
        """What the network says at the mean."""
        return {"point_prediction": _plain(point.mean[index])}

    def cells(self, described: Row) -> dict[str, str]:
        """Mean, standard deviation and interval."""
        shown = {"prediction": "prediction", "std": "std", "low_90": "low", "high_90": "high"}
        return {title: _text(described[name]) for name, title in shown.items()}

    def label_fault(self, label: Any, label_names: Sequence[str]) -> str | None:
        """A finite number, or a list of them."""
        if len(label_names) > 1:
            right = isinstance(label, list) and len(label) == len(label_names) and all(map(_is_number, label))
            return None if right else f"it must be a list of {len(label_names)} numbers"
        return None if _is_number(label) else "it must be a number"

    def from_text(self, label: Any) -> Any:
        """A number."""
        try:
            return float(label) if isinstance(label, str) else label
        except ValueError:
            return label

    def read_label(self, written: Any, label_names: Sequence[str]) -> Any:
        """A number as text or as it is; of several outputs the list."""
        if len(label_names) > 1:
            if self.label_fault(written, label_names) is not None:
                raise DataError(f"a label must be a list of {len(label_names)} numbers, as in the first row.")
            return [float(value) for value in written]
        value = self.from_text(written)
        if not _is_number(value):
            raise DataError("a label must be a finite number.")
        return float(value)

    def names_in(self, rows: Sequence[Row], column: str, path: Path) -> tuple[str, ...]:
        """None for single numbers; the places of a list's numbers, of the first row's length."""
        first = written(rows[0], column, 1, path)
        return tuple(map(str, range(len(first)))) if isinstance(first, list) and len(first) > 1 else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(values: Any) -> Any:
    """A number, or a list where there are several outputs."""
    return values.item() if len(values) == 1 else values.tolist()


def _text(value: Any) -> str:
    return ", ".join(f"{number:.3f}" for number in (value if isinstance(value, list) else [value]))
