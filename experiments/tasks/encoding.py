"""Rows as their base model reads them."""

from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.inputs.inputs import Encoded
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.tasks import Task


def encode(
    task: Task, rows: list[Row], processor: Any, *, max_length: int | None = None, with_labels: bool = True
) -> Encoded:
    """The rows as a data set of what the network reads, not padded: a collator makes the batches.

    Args:
        task: says which columns, and what kind of inputs they hold.
        rows: checked rows, at least one.
        processor: the tokenizer of the base model, or its image processor or feature extractor.
        max_length: tokens per row of text, seconds of a recording; None takes the usual, see `Inputs.encode`.
        with_labels: adds ``labels``, which are always there where they are a part of the text.

    Raises:
        DataError: no rows, or see `Inputs.encode`.
        ConfigurationError: a `max_length` that cannot be.
    """
    if not rows:
        raise DataError(f"Task {task.name!r}: there are no rows to encode. Give at least one.")
    labels = [row[task.label_column] for row in rows] if with_labels or task.family.reads_labels else None
    return task.family.inputs.encode(task, rows, processor, max_length=max_length, labels=labels)
