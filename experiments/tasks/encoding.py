"""Rows as tokens."""

from typing import TYPE_CHECKING

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def encode(
    task: Task,
    rows: list[Row],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None = None,
    with_labels: bool = True,
) -> "Dataset":
    """The rows as a data set of token lists, not padded: a collator pads each batch. Nothing is cached on disk.

    Args:
        task: says which texts and which label column.
        rows: checked rows, at least one.
        tokenizer: of the base model; of a pair, the longer text is cut first.
        max_length: tokens per row; None takes the task's, or what the base model can read where that is less.
        with_labels: adds the column ``labels``.

    Returns:
        The tokenizer's outputs, each (example, token), and ``labels``, (example,).

    Raises:
        DataError: no rows, or a row of which no token is made.
        ConfigurationError: `max_length` is more than the base model can read.
    """
    from datasets import Dataset

    if not rows:
        raise DataError(f"Task {task.name!r}: there are no rows to encode. Give at least one.")
    readable = tokenizer.model_max_length
    if max_length is not None and not 1 <= max_length <= readable:
        raise ConfigurationError(
            f"max_length={max_length!r} must be from 1 to {readable}, what the base model can read."
        )
    limit = min(task.max_length, readable) if max_length is None else max_length
    texts = [list(column) for column in zip(*map(task.texts, rows), strict=True)]
    # GPT-2's tokenizer sets nothing between the texts of a pair, which would run into each other.
    if len(texts) == 2 and tokenizer.num_special_tokens_to_add(pair=True) == 0:
        texts[1] = ["\n" + text for text in texts[1]]
    labels = [row[task.label_column] for row in rows] if with_labels else None
    columns = task.family.tokens(tokenizer, texts, labels, limit)
    empty = [number for number, tokens in enumerate(columns["input_ids"], start=1) if not len(tokens)]
    if empty:
        raise DataError(
            f"Task {task.name!r}: row {empty[0]} has no text ({', '.join(map(repr, task.texts(rows[empty[0] - 1])))}), "
            f"and this tokenizer makes no token of it; {len(empty)} of {len(rows)} rows are like that. Leave them out, "
            "or write something there."
        )
    return Dataset.from_dict(columns)
