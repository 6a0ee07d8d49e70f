"""Predictions as rows, and the rows of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.runs.outputs import PREDICTIONS_FILE
from bayes_lora.experiments.tasks.tasks import Task, checked_rows


def described_rows(task: Task, rows: Sequence[Row], predictive: Any, point: Any = None) -> list[Row]:
    """Each row with what was predicted for it, as its task's family says it.

    Rows that were predictions before lose what they said then.
    """
    family, described = task.family, []
    for index, row in enumerate(rows):
        entry = {name: value for name, value in row.items() if name not in family.output_columns}
        entry |= family.describe(predictive, index, task.label_names)
        if point is not None:
            entry |= family.describe_point(point, index, task.label_names)
        described.append(entry)
    return described


def own_rows(folder: Path, task: Task) -> list[Row]:
    """The rows a run was evaluated on, as its predictions file keeps them; their labels are as the network
    learns them.

    Raises:
        DataError: the file is missing or damaged.
    """
    columns = dict.fromkeys((*task.columns, *task.identity, task.label_column))
    return [{name: row[name] for name in columns} for row in checked_rows(task, folder / PREDICTIONS_FILE)]
