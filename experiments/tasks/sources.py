"""Where the rows of a run come from, in plain data, so that a run can be taken up again."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import TaskError
from bayes_lora.experiments.tasks.tasks import TASKS, TaskRows, file_task, load_task


@dataclass(frozen=True)
class RowsSource:
    """A built-in task, or the user's own files.

    Attributes:
        task: a built-in task, or None.
        data_dir: folder that holds it; None is the hub.
        train_file: the user's rows, where there is no task.
        eval_file: rows to evaluate on; None holds some of the training rows out.
        text_columns: one or two columns of those files.
        label_column: their class.
        limit: use the first so many rows of each split only.
        train_rows: use the first so many training rows only.
        seed: of the hold-out.
        task_type: of those files, the name of a `TaskFamily`.

    Raises:
        TaskError: not one of `task` and `train_file`, or an option of the other one.
        ConfigurationError: `limit`, `train_rows` or `seed` cannot have that value.
    """

    task: str | None = None
    data_dir: str | None = None
    train_file: str | None = None
    eval_file: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str = "label"
    limit: int | None = None
    seed: int = 0
    task_type: str = "classification"
    train_rows: int | None = None

    def __post_init__(self) -> None:
        if (self.task is None) == (self.train_file is None):
            raise TaskError(f"Give either --task ({', '.join(TASKS)}) or --train-file, one of the two.")
        if self.train_file is not None and not self.text_columns:
            raise TaskError("--train-file needs --text-columns: one column name, or two separated by a comma.")
        self._refuse_idle_options()
        require_seed("--seed", self.seed)
        for option, value in (("--limit", self.limit), ("--train-rows", self.train_rows)):
            if value is not None:
                require_count(option, value)

    def _refuse_idle_options(self) -> None:
        """An option that would do nothing is a misunderstanding, which only its user can clear up."""
        idle: dict[str, object]
        if self.task is None:
            idle, why = {"--data-dir": self.data_dir}, "belongs to --task; rows of your own are in --train-file"
        else:
            own_label = None if self.label_column == "label" else self.label_column
            idle = {"--eval-file": self.eval_file, "--text-columns": self.text_columns, "--label-column": own_label}
            idle |= {"--task-type": None if self.task_type == "classification" else self.task_type}
            why = f"belongs to --train-file; --task {self.task} says by itself which rows and columns it has"
        for option, value in idle.items():
            if value:
                raise TaskError(f"{option} {why}. Drop one of the two.")

    def load(self) -> TaskRows:
        """The task and its rows.

        Raises:
            TaskError, DataError: see `load_task` and `file_task`.
        """
        if self.task is not None:
            rows = load_task(self.task, _path(self.data_dir))
        else:
            assert self.train_file is not None
            rows = file_task(
                Path(self.train_file),
                _path(self.eval_file),
                self.text_columns,
                self.label_column,
                task_type=self.task_type,
                seed=self.seed,
            )
        train = rows.train[: self.limit][: self.train_rows]
        return replace(rows, train=train, validation=rows.validation[: self.limit])


def digest(rows: TaskRows) -> str:
    """A checksum of all rows, by which a resumed run knows that they are still the same."""
    return hashlib.sha256(json.dumps([rows.train, rows.validation], sort_keys=True).encode()).hexdigest()


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
