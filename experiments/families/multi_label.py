"""Multi-label classification: any number of labels for each row."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.family import TaskFamily, each_label
from bayes_lora.experiments.rows.rows import Row

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood

SEPARATOR = "|"


class MultiLabel(TaskFamily):
    """Labels are lists of a 0 or a 1 for every name; files of the user's own hold lists of names.

    In a CSV file names stand side by side with a "|" between them, and an empty field is a row without labels.
    """

    name = "multi_label"
    output_columns = ("label_names", "prediction", "probs", "point_probs", "mutual_information")
    table_note = "; mutual information (MI) in nats, of all labels together"

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """Independent Bernoullis."""
        from bayes_lora.models import MultiLabel as Bernoullis

        return Bernoullis.of_network(network)

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One output for each label, with its name."""
        return {
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: index for index, label in enumerate(label_names)},
            "problem_type": "multi_label_classification",
        }

    def check_names(self, label_names: Sequence[str]) -> str | None:
        """At least one."""
        return None if label_names else "has no labels: multi-label classification needs one or more"

    def describe(self, prediction: Any, index: int, label_names: Sequence[str]) -> Row:
        """The labels above one half, probabilities by name, how far draws disagree; the row's labels where known."""
        probs = prediction.mean_probs[index]
        known = {}
        if prediction.labels is not None:
            known = {"label_names": _chosen(prediction.labels[index], label_names)}
        return {
            **known,
            "prediction": _chosen(probs > 0.5, label_names),
            "probs": dict(zip(label_names, probs.tolist(), strict=True)),
            "mutual_information": prediction.mutual_information[index].sum().item(),
        }

    def describe_point(self, point: Any, index: int, label_names: Sequence[str]) -> Row:
        """Probabilities by name."""
        return {"point_probs": dict(zip(label_names, point.mean_probs[index].tolist(), strict=True))}

    def cells(self, described: Row) -> dict[str, str]:
        """The labels above one half with their probabilities, and the mutual information."""
        shown = (f"{name} {described['probs'][name]:.2f}" for name in described["prediction"])
        return {"prediction": ", ".join(shown) or "-", "MI": f"{described['mutual_information']:.4f}"}

    def label_text(self, label: Any, label_names: Sequence[str]) -> str:
        """Names with commas between them."""
        return ", ".join(name for name, chosen in zip(label_names, label, strict=True) if chosen) or "-"

    def label_fault(self, label: Any, label_names: Sequence[str]) -> str | None:
        """A list of zeros and ones."""
        right = isinstance(label, list) and len(label) == len(label_names)
        right = right and all(isinstance(value, int) and value in (0, 1) for value in label)
        return None if right else f"it must be a list of {len(label_names)} zeros and ones ({', '.join(label_names)})"

    def read_label(self, written: Any, label_names: Sequence[str]) -> list[int]:
        """The list of a 0 or a 1 for every name."""
        names = _names(written)
        unknown = [name for name in names if name not in label_names]
        if unknown:
            raise DataError(
                f"label {unknown[0]!r} is none that a training row has; they have {', '.join(label_names)}. Correct "
                "it, or add training rows with it."
            )
        return [int(name in names) for name in label_names]

    def names_in(self, rows: Sequence[Row], column: str, path: Path) -> tuple[str, ...]:
        """All labels that occur, in alphabetical order.

        Raises:
            DataError: a row's labels are no list of names, or no row has any.
        """
        found: set[str] = set().union(*each_label(rows, column, path, _names))
        if not found:
            raise DataError(f"{path}: no row has a label in column {column!r}. Name another --label-column.")
        return tuple(sorted(found))


def _names(label: Any) -> list[str]:
    names = label
    if isinstance(label, str):
        names = [name.strip() for name in label.split(SEPARATOR)] if label.strip() else []
    if not isinstance(names, list) or any(
        isinstance(name, bool) or not isinstance(name, int | str) or name == "" for name in names
    ):
        raise DataError(f"labels must be a list of names, or names with a {SEPARATOR!r} between them.")
    return [str(name) for name in names]


def _chosen(chosen: Any, label_names: Sequence[str]) -> list[str]:
    return [name for name, is_chosen in zip(label_names, chosen.tolist(), strict=True) if is_chosen]
