"""Ordinal classification: one of several grades for each row, such as stars."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.classification import Classification
from bayes_lora.experiments.rows.rows import Row

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood


class Ordinal(Classification):
    """Labels are ids of grades, in their order; files of the user's own hold the grades, which are numbers."""

    name = "ordinal"
    of_classes = False

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """Cumulative logits."""
        from bayes_lora.models import Ordinal as CumulativeLogits

        return CumulativeLogits(len(label_names))

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """One output, along which the grades lie."""
        return {"num_labels": 1}

    def names_in(self, rows: Sequence[Row], column: str, path: Path) -> tuple[str, ...]:
        """The grades of a label column, in numerical order.

        Raises:
            DataError: they are not numbers, so that nobody knows their order; see `Classification.names_in`.
        """
        names = super().names_in(rows, column, path)
        try:
            return tuple(sorted(names, key=float))
        except ValueError as error:
            raise DataError(
                f"{path}: column {column!r} holds grades without an order ({', '.join(names[:5])}). Write them as "
                "numbers, such as 1 to 5; or use --task-type classification."
            ) from error
