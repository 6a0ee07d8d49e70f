"""Tasks: which columns hold the text, what the labels mean, and where the rows come from."""

import difflib
import string
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError, TaskError
from bayes_lora.experiments.families.family import TaskFamily, task_family
from bayes_lora.experiments.rows.choice_rows import ANSWER, OPTIONS, QUESTION
from bayes_lora.experiments.rows.rows import Row, read_rows
from bayes_lora.experiments.tasks.choice_tasks import CHOICE_TASKS, files_of, splits_of


@dataclass(frozen=True)
class Task:
    """A task over one text or a pair of texts, or over files.

    Attributes:
        name: as typed after ``--task``.
        text_columns: the one or two columns with the text; of files the one with their paths.
        label_column: the column with the label; of a classification the class id, 0 to ``len(label_names) - 1``.
        label_names: what the class ids mean; empty where labels have no names.
        hub: dataset and configuration on the Hugging Face hub, or None for rows from elsewhere.
        max_length: tokens after which a row of text is cut.
        templates: what the model reads, where that is more than the text columns: one or two format strings over
            column names, such as "{word}: {sentence1}". Empty: the text columns as they are. Being plain text, they
            are saved with a run, where a function could not be.
        task_type: name of its `TaskFamily`.

    Raises:
        TaskError: not one or two different texts, a column that predictions have too, an unknown type, label names that
            do not suit it, or a template that is no plain "{column}" format.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    label_names: tuple[str, ...]
    hub: tuple[str, str | None] | None = None
    max_length: int = 128
    templates: tuple[str, ...] = ()
    task_type: str = "classification"

    @property
    def family(self) -> TaskFamily:
        """What it shares with the tasks of its type.

        Raises:
            TaskError: there is no such type.
        """
        return task_family(self.task_type)

    def __post_init__(self) -> None:
        for what, values in (("text columns", self.text_columns), ("templates", self.templates or self.text_columns)):
            if len(values) not in (1, 2):
                raise TaskError(f"Task {self.name!r} has {len(values)} {what}, {values}: give one or two.")
        if len(set(self.text_columns)) < len(self.text_columns):
            raise TaskError(f"Task {self.name!r} names a text column twice, {self.text_columns}: name it once.")
        taken = [column for column in (*self.columns, self.label_column) if column in self.family.output_columns]
        if taken:
            raise TaskError(
                f"Task {self.name!r}: {', '.join(map(repr, taken))} cannot be a text or label column, since "
                "predictions have a column of that name. Rename it in the file."
            )
        if self.label_column in self.columns:
            raise TaskError(
                f"Task {self.name!r}: column {self.label_column!r} is both text and label. Name two different columns."
            )
        fault = self.family.check_names(self.label_names)
        if fault is not None:
            raise TaskError(f"Task {self.name!r} {fault}.")
        if self.max_length < 8:
            raise TaskError(
                f"Task {self.name!r}: max_length={self.max_length} leaves no room for text. Give 8 or more."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column with text that a row must have: the text columns, then what only the templates name."""
        found = dict.fromkeys(self.text_columns)
        for template in self.templates:
            try:
                fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
            except ValueError as error:
                raise TaskError(f"Task {self.name!r}: template {template!r} is malformed ({error}).") from error
            for column, spec, conversion in fields:
                # "{a.b}" and "{a[0]}" reach inside a value, which no column of text needs.
                if not column or not column.isidentifier() or spec or conversion:
                    raise TaskError(f"Task {self.name!r}: template {template!r} may hold plain {{column}} fields only.")
                found[column] = None
        return tuple(found)

    @property
    def identity(self) -> tuple[str, ...]:
        """Columns that say what a row is, wherever it is kept."""
        return self.family.inputs.identity or self.columns

    def texts(self, row: Row) -> tuple[str, ...]:
        """The one or two texts of a checked row, as the model reads them."""
        if self.templates:
            return tuple(template.format_map(row) for template in self.templates)
        return tuple(row[column] for column in self.text_columns)

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `from_json` makes the same task."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Task":
        """The task that `to_json` described.

        Raises:
            TaskError: an unknown or missing field.
        """
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        try:
            return cls(**fields)
        except TypeError as error:
            raise TaskError(
                f"This is no saved task: {error}. It has the fields {', '.join(data) or 'none'}."
            ) from error


@dataclass(frozen=True)
class TaskRows:
    """A task with its rows; every label is as the network learns it, such as a class id."""

    task: Task
    train: list[Row]
    validation: list[Row]


_SENTENCES = ("sentence1", "sentence2")
_GLUE, _SUPER_GLUE = "nyu-mll/glue", "aps/super_glue"

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("mrpc", _SENTENCES, "label", ("not_equivalent", "equivalent"), (_GLUE, "mrpc")),
        Task("rte", _SENTENCES, "label", ("entailment", "not_entailment"), (_GLUE, "rte")),
        Task("cola", ("sentence",), "label", ("unacceptable", "acceptable"), (_GLUE, "cola")),
        Task(
            "wic",
            _SENTENCES,
            "label",
            ("different_sense", "same_sense"),
            (_SUPER_GLUE, "wic"),
            templates=("{word}: {sentence1}", "{sentence2}"),
        ),
        Task("boolq", ("question", "passage"), "label", ("no", "yes"), (_SUPER_GLUE, "boolq"), max_length=256),
        *(
            Task(name, (QUESTION, OPTIONS), ANSWER, (), source.hub, max_length=512, task_type="multiple_choice")
            for name, source in CHOICE_TASKS.items()
        ),
    )
}


def load_task(name: str, data_dir: Path | None = None) -> TaskRows:
    """A built-in task with its rows, from files below a folder, see `files_of`, or else from the hub.

    Raises:
        TaskError: no built-in task has that name.
        DataError: a file, column or label is missing or malformed, or the hub cannot be reached.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name.lower(), TASKS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise TaskError(
            f"There is no task {name!r}.{hint} The tasks are {', '.join(TASKS)}; "
            "for rows of your own give --train-file."
        )
    task = TASKS[name]
    if data_dir is None:
        train, validation = (_hub_rows(task, split) for split in splits_of(name))
    else:
        places = [Path(data_dir) / file for file in files_of(name)]
        if not places[0].parent.is_dir():
            raise DataError(
                f"There is no folder {places[0].parent}. --data-dir takes the folder that holds "
                f"{' and '.join(files_of(name))}."
            )
        train, validation = (checked_rows(task, path) for path in places)
    return TaskRows(task, train, validation)


def _hub_rows(task: Task, split: str) -> list[Row]:
    # Imported where it is needed: with pandas and pyarrow behind it, it would slow every start of the command line.
    from datasets import load_dataset

    if task.hub is None:
        raise DataError(f"Task {task.name!r} is not on the hub. Give --data-dir, the folder with its rows.")
    try:
        rows: list[Row] = load_dataset(*task.hub, split=split).to_list()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"Task {task.name!r} could not be loaded from the hub as {task.hub[0]}, {task.hub[1]} "
            f"({type(error).__name__}: {error}). Without a network give --data-dir, the folder that holds "
            f"{' and '.join(files_of(task.name))}."
        ) from error
    where = f"{task.hub[0]}, {task.hub[1]}, {split}"
    return _checked(task, task.family.from_file(rows, where), where)


def checked_rows(task: Task, path: Path, *, labelled: bool = True) -> list[Row]:
    """The rows of a file, with every text column and, where `labelled`, a label; other columns are kept.

    Raises:
        DataError: the file cannot be read, or a row lacks a text or a label.
    """
    rows = read_rows(path)
    if task.family.columns == (task.text_columns, task.label_column):
        rows = task.family.from_file(rows, path)
    return _checked(task, rows, str(path), labelled=labelled or task.family.reads_labels)


def _checked(task: Task, rows: list[Row], where: str, *, labelled: bool = True) -> list[Row]:
    """The rows themselves, once each has its texts and, where `labelled`, a label."""
    for number, row in enumerate(rows, start=1):
        for column in task.columns + ((task.label_column,) if labelled else ()):
            if column not in row:
                raise DataError(
                    f"{where}, row {number} has no column {column!r}; it has {', '.join(map(str, row)) or 'none'}."
                    " Name the columns with --text-columns and --label-column, or add it."
                )
        for column in task.columns:
            fault = task.family.inputs.fault(row[column])
            if fault is not None:
                raise DataError(f"{where}, row {number}, column {column!r} holds {row[column]!r}: {fault}.")
        fault = task.family.row_fault([row[column] for column in task.columns], row.get(task.label_column))
        if fault is not None:
            raise DataError(f"{where}, row {number}, columns {task.columns[0]!r} and {task.label_column!r}: {fault}.")
        label = row[task.label_column] if labelled else None
        fault = task.family.label_fault(label, task.label_names) if labelled else None
        if fault is not None:
            raise DataError(f"{where}, row {number}, column {task.label_column!r} holds {label!r}: {fault}.")
    return rows


def file_task(
    train_file: Path,
    eval_file: Path | None,
    text_columns: tuple[str, ...],
    label_column: str,
    *,
    task_type: str = "classification",
    holdout: float = 0.1,
    seed: int = 0,
) -> TaskRows:
    """A task made of the user's own JSON lines or CSV files.

    Names of labels, where they have some, are those of the train file; rows come back with labels as the network learns
    them.

    Args:
        train_file: rows to train on.
        eval_file: rows to evaluate on; None holds out a part of the train file, of a classification with the same
            share of every class.
        text_columns: one column, or two for a pair of texts.
        label_column: the column with the label.
        task_type: the name of a `TaskFamily`.
        holdout: the fraction held out, between 0 and 1, rounded up to whole rows.
        seed: of the hold-out.

    Raises:
        TaskError: an unknown type, not one or two text columns, or one of them is the label.
        ConfigurationError: `holdout` outside (0, 1).
        DataError: a file, column or label is missing or malformed; fewer than two classes; an evaluation label that
            no training row has; too few rows to hold any out.
    """
    # The names are not known yet: two stand-ins let the same checks of names and texts run first.
    name, most = Path(train_file).name.split(".")[0], task_family(task_type).inputs.max_length
    draft = Task(name, text_columns, label_column, ("0", "1"), max_length=most, task_type=task_type)
    train = checked_rows(draft, Path(train_file), labelled=False)
    evaluated = None if eval_file is None else (checked_rows(draft, Path(eval_file), labelled=False), eval_file)
    return with_names(draft, (train, train_file), evaluated, holdout=holdout, seed=seed)


def with_names(
    draft: Task, train: tuple[list[Row], Path], evaluated: tuple[list[Row], Path] | None, *, holdout: float, seed: int
) -> TaskRows:
    """A task of the user's own once its rows are there: with the names of their labels, which become what the network
    learns.

    Args:
        draft: the task with any names.
        train: rows, with labels as they were written, and the place that they are from.
        evaluated: the same of those to evaluate on; None holds some of the training rows out.
        holdout: what part of them.
        seed: of the hold-out.

    Raises:
        ConfigurationError, DataError: see `file_task`.
    """
    family, column = draft.family, draft.label_column
    rows, path = train
    names = family.names_in(rows, column, path)
    known = family.with_labels(rows, column, names, path)
    if evaluated is None:
        known, validation = family.hold_out(known, column, path, fraction=holdout, seed=seed)
    else:
        validation = family.with_labels(evaluated[0], column, names, evaluated[1])
    return TaskRows(replace(draft, label_names=names), known, validation)
