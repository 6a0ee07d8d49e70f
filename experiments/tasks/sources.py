"""Where the rows of a run come from, in plain data, so that a run can be taken up again."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import TaskError
from bayes_lora.experiments.families.family import TaskFamily, task_family
from bayes_lora.experiments.families.multiple_choice import SCORINGS
from bayes_lora.experiments.tasks.folders import folder_task, folder_types
from bayes_lora.experiments.tasks.tasks import TASKS, TaskRows, file_task, load_task


@dataclass(frozen=True)
class RowsSource:
    """A built-in task, or the user's own rows: in one file, or as a folder of files.

    Attributes:
        task: a built-in task, or None.
        data_dir: folder that holds it; None is the hub.
        train_file: the user's rows, where there is no task.
        eval_file: rows to evaluate on; None holds some of the training rows out.
        text_columns: one or two columns of those files; some types need none named.
        label_column: their class.
        limit: use the first so many rows of each split only.
        train_rows: use the first so many training rows only.
        seed: of the hold-out.
        task_type: of the user's own rows, the name of a `TaskFamily`.
        train_dir: folder of the user's images or recordings, a folder for each class.
        eval_dir: those to evaluate on; None holds some of the others out.
        scoring: of multiple choice, one of `SCORINGS`; None is that of the type.

    Raises:
        TaskError: not one of `task`, `train_file` and `train_dir`, an option of another one, or rows of a kind that
            this type of task does not have.
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
    train_dir: str | None = None
    eval_dir: str | None = None
    scoring: str | None = None

    def __post_init__(self) -> None:
        if sum(place is not None for place in (self.task, self.train_file, self.train_dir)) != 1:
            raise TaskError(
                f"Give either --task ({', '.join(TASKS)}) or --train-file, or --train-dir for images and recordings: "
                "one of them."
            )
        self._check_kind()
        self._check_scoring()
        if self.train_file is not None and not self.text_columns and task_family(self.task_type).columns is None:
            raise TaskError("--train-file needs --text-columns: one column name, or two separated by a comma.")
        self._refuse_idle_options()
        require_seed("--seed", self.seed)
        for option, value in (("--limit", self.limit), ("--train-rows", self.train_rows)):
            if value is not None:
                require_count(option, value)

    def _check_kind(self) -> None:
        """Rows of one file and files in folders are for different types of tasks."""
        of_files = bool(task_family(self.task_type).inputs.suffixes)
        if self.train_dir is not None and not of_files:
            raise TaskError(
                f"--train-dir is a folder of files, which --task-type {self.task_type} does not read. Say --task-type "
                f"{' or '.join(folder_types())}; rows that stand in one file are --train-file."
            )
        if self.train_file is not None and of_files:
            raise TaskError(
                f"--task-type {self.task_type} reads files in folders. Give --train-dir, a folder with one for each "
                "class, in place of --train-file."
            )

    def _check_scoring(self) -> None:
        if self.scoring is None:
            return
        if self.scoring not in SCORINGS:
            raise TaskError(f"--scoring {self.scoring} is none of {', '.join(SCORINGS)}.")
        if self._unscored_type not in SCORINGS.values():
            raise TaskError(
                f"--scoring says how options are scored, and {self.task or self.task_type} has none: it belongs to "
                "multiple choice. Drop it."
            )

    @property
    def _unscored_type(self) -> str:
        return TASKS[self.task].task_type if self.task in TASKS else self.task_type

    @property
    def family(self) -> TaskFamily:
        """Of the task that these rows are of."""
        return task_family(self._unscored_type if self.scoring is None else SCORINGS[self.scoring])

    def _refuse_idle_options(self) -> None:
        """An option that would do nothing is a misunderstanding, which only its user can clear up."""
        own_label = None if self.label_column == "label" else self.label_column
        idle: dict[str, object] = {}
        if self.task is None:
            idle["--data-dir"], why = self.data_dir, "belongs to --task; rows of your own are in --train-file"
        else:
            idle["--task-type"] = None if self.task_type == "classification" else self.task_type
        if self.train_file is not None and not self.family.renames_columns:
            idle |= {"--text-columns": self.text_columns, "--label-column": own_label}
            why = f"does not go with --task-type {self.task_type}, which knows its columns by their names"
        if self.train_file is None:
            idle |= {"--eval-file": self.eval_file, "--text-columns": self.text_columns, "--label-column": own_label}
            why = f"belongs to --train-file; --task {self.task} says by itself which rows and columns it has"
        if self.train_dir is not None:
            why = "does not go with --train-dir, whose folders are the classes; --eval-dir has files to evaluate on"
        else:
            idle["--eval-dir"] = self.eval_dir
        for option, value in idle.items():
            if value:
                why = "belongs to --train-dir" if option == "--eval-dir" else why
                raise TaskError(f"{option} {why}. Drop one of the two.")

    def _columns(self) -> tuple[tuple[str, ...], str]:
        """Text columns and label column of the user's files, those of the type where nobody named them."""
        known = task_family(self.task_type).columns
        if self.text_columns or known is None:
            return self.text_columns, self.label_column
        return known[0], known[1] if self.label_column == "label" else self.label_column

    def load(self) -> TaskRows:
        """The task and its rows.

        Raises:
            TaskError, DataError: see `load_task`, `file_task` and `folder_task`.
        """
        if self.task is not None:
            rows = load_task(self.task, _path(self.data_dir))
        elif self.train_dir is not None:
            rows = folder_task(Path(self.train_dir), _path(self.eval_dir), task_type=self.task_type, seed=self.seed)
        else:
            assert self.train_file is not None
            text_columns, label_column = self._columns()
            rows = file_task(
                Path(self.train_file),
                _path(self.eval_file),
                text_columns,
                label_column,
                task_type=self.task_type,
                seed=self.seed,
            )
        task = replace(rows.task, task_type=self.family.name)
        train = rows.train[: self.limit][: self.train_rows]
        return TaskRows(task, train, rows.validation[: self.limit])


def digest(rows: TaskRows) -> str:
    """A checksum of all rows, by which a resumed run knows that they are still the same, wherever they are."""
    places = set(rows.task.columns) - set(rows.task.identity)
    parts = [
        [{name: value for name, value in row.items() if name not in places} for row in part]
        for part in (rows.train, rows.validation)
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
