"""Labels of tokens in a data set: how many there are, and that there are some."""

from typing import Any

import torch
from torch import Tensor

from bayes_lora.errors import DataError
from bayes_lora.labels import UNLABELLED


def count_labelled(dataset: Any, first: int = 0) -> int | None:
    """Tokens with a label in all rows; None where the data set has no length, or a collator is to make the labels.

    Args:
        dataset: rows with `labels`, each (token,).
        first: place of the first token of a row that counts.
    """
    if not hasattr(dataset, "__len__") or not _has_labels(dataset):
        return None
    return sum(int(_labelled(row, first).sum()) for row in dataset)


def require_labelled(dataset: Any, first: int = 0) -> None:
    """Raise if all tokens of all rows are passed over; of a data set that is no list of labelled rows nothing is said.

    Raises:
        DataError: no token has a label.
    """
    if not hasattr(dataset, "__len__") or not _has_labels(dataset):
        return
    if not any(bool(_labelled(row, first).any()) for row in dataset):
        raise DataError(
            f"there is nothing to learn: in all {len(dataset)} rows every label is {UNLABELLED}, which passes its "
            "token over. Give some tokens a label; where rows are cut at a length, see that it leaves them some."
        )


def _has_labels(dataset: Any) -> bool:
    return len(dataset) > 0 and "labels" in dataset[0]


def _labelled(row: Any, first: int) -> Tensor:
    return torch.as_tensor(row["labels"])[first:] != UNLABELLED
