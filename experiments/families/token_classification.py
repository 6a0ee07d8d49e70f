"""Token classification: a class for each word of a row, such as where names are."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.family import TaskFamily, each_label
from bayes_lora.experiments.inputs.words import Words, split
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.labels import TO_PREDICT, UNLABELLED

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood


_SHOWN = 40  # characters of a row's classes in a table, beside which its text still stands


class TokenClassification(TaskFamily):
    """A text is a list of words, its label that of their class ids; files of the user's own hold the classes' names.

    In a CSV file both are text, with blanks between words and between classes.
    """

    name = "token_classification"
    inputs = Words()
    output_columns = ("label_names", "prediction", "probability", "mutual_information", "point_prediction")
    counts_rows = False
    table_note = "; mutual information (MI) in nats, of all words together"

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """A categorical for each token."""
        from bayes_lora.models import TokenClassification as Tokens

        return Tokens(tuple(label_names))

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One output for each class, with its name."""
        return {
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: index for index, label in enumerate(label_names)},
        }

    def auto_class(self) -> Any:
        """Of networks with a class for each token."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def check_names(self, label_names: Sequence[str]) -> str | None:
        """At least two classes."""
        if len(label_names) < 2:
            return f"has the classes {tuple(label_names)}: token classification needs at least two classes"
        return None

    def row_fault(self, texts: Sequence[Any], label: Any) -> str | None:
        """As many labels as words, where there are labels."""
        words, labels = split(texts[0]), split(label)
        if not isinstance(labels, list) or not labels or len(labels) == len(words):
            return None
        return f"it has {len(words)} words and {len(labels)} labels. Give one for each word"

    def describe(self, prediction: Any, index: int, label_names: Sequence[str]) -> Row:
        """Of each word the class, its probability, and how far draws disagree on it; the words' classes where known."""
        places = prediction.positions(index)
        probs, known = prediction.mean_probs[index, places], {}
        if prediction.labels is not None and (prediction.labels[index, places] >= 0).all():
            known = {"label_names": [label_names[label] for label in prediction.labels[index, places].tolist()]}
        return {
            **known,
            "prediction": [label_names[label] for label in probs.argmax(-1).tolist()],
            "probability": probs.amax(-1).tolist(),
            "mutual_information": prediction.mutual_information[index, places].tolist(),
        }

    def describe_point(self, point: Any, index: int, label_names: Sequence[str]) -> Row:
        """The classes of the words."""
        probs = point.mean_probs[index, point.positions(index)]
        return {"point_prediction": [label_names[label] for label in probs.argmax(-1).tolist()]}

    def cells(self, described: Row) -> dict[str, str]:
        """The classes, the least probability of one, and the mutual information."""
        return {
            "prediction": textwrap.shorten(" ".join(described["prediction"]), _SHOWN, placeholder=" ..."),
            "least prob.": f"{min(described['probability'], default=1.0):.3f}",
            "MI": f"{sum(described['mutual_information']):.4f}",
        }

    def label_text(self, label: Any, label_names: Sequence[str]) -> str:
        """The words' classes with blanks between them."""
        return " ".join(label_names[one] for one in label)

    def label_fault(self, label: Any, label_names: Sequence[str]) -> str | None:
        """Class ids of the words."""
        ids = range(len(label_names))
        if isinstance(label, list) and label and all(type(one) is int and one in ids for one in label):
            return None
        return f"it must be a list of integers from 0 to {len(label_names) - 1} ({', '.join(label_names)})"

    def read_label(self, written: Any, label_names: Sequence[str]) -> list[int]:
        """The places of the words' names among those of the training rows."""
        found = []
        for name in _tags(written):
            if name not in label_names:
                raise DataError(
                    f"class {name!r} is none that a training row has; they have {', '.join(label_names)}. Correct it, "
                    "or add training rows with it."
                )
            found.append(list(label_names).index(name))
        return found

    def names_in(self, rows: Sequence[Row], column: str, path: Path) -> tuple[str, ...]:
        """The classes that occur, "O" first.

        Raises:
            DataError: a row's labels are no list of names, or all words have one class.
        """
        found: set[str] = set().union(*each_label(rows, column, path, _tags))
        if len(found) < 2:
            raise DataError(
                f"{path}: column {column!r} holds one class only ({', '.join(found)}). Add rows of another class, or "
                "name another --label-column."
            )
        numbers = all(name.isdecimal() for name in found)
        return tuple(sorted(found, key=lambda name: (name != "O", int(name) if numbers else name)))

    def labels_of(self, rows: Sequence[Row], column: str, label_names: Sequence[str], *, by_name: bool) -> Any:
        """The labels of rows, (row, word), with -100 behind a row's last word; None where not every row has some."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        found = []
        for row in rows:
            try:
                label = self.read_label(row[column], label_names) if by_name else row[column]
            except (KeyError, DataError):
                return None
            if self.label_fault(label, label_names) is not None:
                return None
            found.append(torch.tensor(label, dtype=torch.long))
        return pad_sequence(found, batch_first=True, padding_value=UNLABELLED)


def _tags(label: Any) -> list[str]:
    names = split(label)
    if not isinstance(names, list) or not names or not all(type(name) is int or _is_name(name) for name in names):
        raise DataError("labels must be a list of names, one for each word, or names with blanks between them.")
    found = [str(name) for name in names]
    for masked in {str(TO_PREDICT), str(UNLABELLED)} & set(found):
        raise DataError(
            f"{masked} marks tokens without a class, and is no class of a word. Give the class of every word; special "
            "tokens and pieces of words are masked when the words become tokens."
        )
    return found


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.strip() != ""
