"""Scores of texts as a plain table, for evaluations that are made elsewhere."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.files import write_file


def write_scores(rows: Sequence[dict[str, Any]], path: Path | str) -> None:
    """Write rows of `Generation.table` or `Answers.table` as CSV, one line a text, whole or not at all.

    Every column of scores is larger where the network is less sure, which is how evaluations of uncertainty, such as
    that of lm-polygraph (prediction rejection ratios, AUROC), take them: `nll` is its maximum sequence probability
    as a negative logarithm, `nll_per_token` the logarithm of its perplexity, `total_entropy_per_token` its mean token
    entropy. Columns of your own, such as whether an answer is right, are added to the rows before.

    Raises:
        DataError: no rows, rows of different columns, or a place that cannot be written.
    """
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise DataError("a table needs rows, all with the same columns. Write tables of one kind, one file each.")
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_file(Path(path), text.getvalue().encode())
