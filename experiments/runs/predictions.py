"""Predictions as rows, and which class the rows themselves say."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bayes_lora.experiments.runs.outputs import PREDICTIONS_FILE
from bayes_lora.experiments.tasks.rows import Row
from bayes_lora.experiments.tasks.tasks import OUTPUT_COLUMNS, Task, checked_rows
from bayes_lora.inference import Prediction


def described_rows(
    task: Task, rows: Sequence[Row], predictive: Prediction, point: Prediction | None = None
) -> list[Row]:
    """Each row with its predicted class, probabilities by class name, and entropies in nats.

    Rows that were predictions before lose what they said then. The name of the class is added where there are labels.
    """
    described = []
    for index, row in enumerate(rows):
        probs = predictive.mean_probs[index]
        entry = {name: value for name, value in row.items() if name not in OUTPUT_COLUMNS}
        if predictive.labels is not None:
            entry["label_name"] = task.label_names[int(predictive.labels[index])]
        entry |= {
            "prediction": task.label_names[int(probs.argmax())],
            "probs": dict(zip(task.label_names, probs.tolist(), strict=True)),
            "total_entropy": predictive.total_entropy[index].item(),
            "aleatoric_entropy": predictive.aleatoric_entropy[index].item(),
            "mutual_information": predictive.mutual_information[index].item(),
        }
        if point is not None:
            entry["point_probs"] = dict(zip(task.label_names, point.mean_probs[index].tolist(), strict=True))
        described.append(entry)
    return described


def own_rows(folder: Path, task: Task) -> list[Row]:
    """The rows a run was evaluated on, as its predictions file keeps them; their labels are class ids.

    Raises:
        DataError: the file is missing or damaged.
    """
    columns = (*task.columns, task.label_column)
    return [{name: row[name] for name in columns} for row in checked_rows(task, folder / PREDICTIONS_FILE)]


def class_ids(task: Task, rows: Sequence[Row], *, by_name: bool) -> Tensor | None:
    """The class id of every row, (example,), or None where not every row says one.

    Args:
        task: says which column holds the class.
        rows: any rows.
        by_name: the column holds the class itself, as in a file of the user's own, rather than its id.
    """
    known = {name if by_name else str(index): index for index, name in enumerate(task.label_names)}
    found = []
    for row in rows:
        label = row.get(task.label_column)
        # True and 1.0 are no labels in training either.
        if isinstance(label, bool) or not isinstance(label, int | str) or str(label) not in known:
            return None
        found.append(known[str(label)])
    return torch.tensor(found)
