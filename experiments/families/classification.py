"""Classification: one class for each row."""

import re
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.family import TaskFamily, each_label
from bayes_lora.experiments.rows.rows import Row

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood


class Classification(TaskFamily):
    """Labels are class ids, 0 to ``len(label_names) - 1``; files of the user's own hold the classes' names.

    Names are integers or text, compared as text: 1 in a JSON lines file and "1" in a CSV file are one class.
    """

    name = "classification"
    output_columns = (
        "label_name",
        "prediction",
        "probs",
        "point_probs",
        "total_entropy",
        "aleatoric_entropy",
        "mutual_information",
    )
    stratified = True
    of_classes = True
    table_note = "; entropy and mutual information (MI) in nats"

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """Categorical."""
        from bayes_lora.models import Classification as Categorical

        return Categorical(network)

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One output for each class, with its name."""
        return {
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: index for index, label in enumerate(label_names)},
        }

    def check_names(self, label_names: Sequence[str]) -> str | None:
        """At least two classes."""
        if len(label_names) < 2:
            return f"has the classes {tuple(label_names)}: classification needs at least two classes"
        return None

    def describe(self, prediction: Any, index: int, label_names: Sequence[str]) -> Row:
        """The predicted class, probabilities by class name and entropies in nats; the label's name where known."""
        probs = prediction.mean_probs[index]
        known = {} if prediction.labels is None else {"label_name": label_names[int(prediction.labels[index])]}
        return {
            **known,
            "prediction": label_names[int(probs.argmax())],
            "probs": dict(zip(label_names, probs.tolist(), strict=True)),
            "total_entropy": prediction.total_entropy[index].item(),
            "aleatoric_entropy": prediction.aleatoric_entropy[index].item(),
            "mutual_information": prediction.mutual_information[index].item(),
            **({} if prediction.num_draws is None else {"num_draws": int(prediction.num_draws[index])}),
        }

    def describe_point(self, point: Any, index: int, label_names: Sequence[str]) -> Row:
        """Probabilities by class name."""
        return {"point_probs": dict(zip(label_names, point.mean_probs[index].tolist(), strict=True))}

    def cells(self, described: Row) -> dict[str, str]:
        """The class, its probability, entropy and mutual information."""
        return {
            "prediction": described["prediction"],
            "prob.": f"{described['probs'][described['prediction']]:.3f}",
            "entropy": f"{described['total_entropy']:.3f}",
            "MI": f"{described['mutual_information']:.4f}",
        }

    def label_text(self, label: Any, label_names: Sequence[str]) -> str:
        """The class's name."""
        return label_names[int(label)]

    def label_fault(self, label: Any, label_names: Sequence[str]) -> str | None:
        """Class ids are integers; True and 1.0 are none."""
        if isinstance(label, int) and not isinstance(label, bool) and label in range(len(label_names)):
            return None
        return f"it must be an integer from 0 to {len(label_names) - 1} ({', '.join(label_names)})"

    def from_text(self, label: Any) -> Any:
        """A class id."""
        return int(label) if isinstance(label, str) and re.fullmatch(r"[0-9]+", label) else label

    def read_label(self, written: Any, label_names: Sequence[str]) -> int:
        """The place of a name among those of the training rows."""
        name = _name(written)
        if name not in label_names:
            raise DataError(
                f"a class that no training row has; they have {', '.join(label_names)}. Correct the label, or add "
                "training rows of that class."
            )
        return list(label_names).index(name)

    def names_in(self, rows: Sequence[Row], column: str, path: Path) -> tuple[str, ...]:
        """The classes of a label column: integers in numerical, anything else in alphabetical order.

        Raises:
            DataError: a label is missing, or neither an integer nor text; or all rows have one class.
        """
        classes = set(each_label(rows, column, path, _name))
        if len(classes) < 2:
            raise DataError(
                f"{path}: column {column!r} holds one class only ({', '.join(classes)}). Add rows of another class, or "
                "name another --label-column."
            )
        _warn_of_twins(classes, path, column)
        if all(re.fullmatch(r"-?[0-9]+", name) for name in classes):
            return tuple(sorted(classes, key=lambda name: (int(name), name)))
        return tuple(sorted(classes))


def _warn_of_twins(names: Collection[str], path: Path, column: str) -> None:
    """Classes that may have been meant as one: they differ by blanks, by upper case, or by how a number is written."""
    by_meaning: dict[str | float, str] = {}
    for name in sorted(names):
        meaning: str | float = " ".join(name.casefold().split())
        with suppress(ValueError):
            meaning = float(meaning)
        twin = by_meaning.setdefault(meaning, name)
        if twin != name:
            warnings.warn(
                f"{path}: column {column!r} has the classes {twin!r} and {name!r}, which are taken for two. If they "
                "are one, write it the same way everywhere.",
                stacklevel=2,
            )


def _name(label: Any) -> str:
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise DataError("a label must be an integer or text.")
    return str(label)
