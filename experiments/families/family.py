"""What the tasks of one kind share: how labels are read, the network's head, the likelihood, how predictions read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bayes_lora.discovery import classes_of
from bayes_lora.errors import DataError, TaskError
from bayes_lora.experiments import families
from bayes_lora.experiments.inputs.inputs import Inputs
from bayes_lora.experiments.inputs.text import Text
from bayes_lora.experiments.rows.rows import Row, hold_out

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood

T = TypeVar("T")

# Imports of transformers and torch stand inside functions: reading rows needs neither.


class TaskFamily(ABC):
    """One kind of task. A subclass in a file of this package is found by its `name`.

    A label is kept in rows as the network learns it, such as a class id; files of the user's own may say it otherwise,
    such as by the class's name.

    Attributes:
        name: as typed after ``--task-type``, and in the files of a run.
        output_columns: what `describe` adds to a row; no text or label column may have one of these names.
        stratified: whether rows are held out with the same share of every label in both parts.
        table_note: what the title of such a table adds, such as units.
        inputs: how rows become what the network reads.
        of_classes: whether a label is one class, and the network has an output for each: what some methods need.
        of_options: whether a label is one of a row's own options, and a pass gives the scores of these.
        takes_temperature: whether predictions keep what a temperature changes, see `Likelihood.rescaled`.
        columns: text columns and label column of the user's own files, where these need not be named.
        renames_columns: whether other columns may be named.
        reads_labels: whether the network reads the labels: they are a part of the text.
        counts_rows: whether an observation is a row, see `Likelihood.num_observations`.
    """

    name: ClassVar[str]
    output_columns: ClassVar[tuple[str, ...]]
    stratified: ClassVar[bool] = False
    table_note: ClassVar[str] = ""
    inputs: ClassVar[Inputs] = Text()
    of_classes: ClassVar[bool] = False
    of_options: ClassVar[bool] = False
    takes_temperature: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, ...], str] | None] = None
    renames_columns: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False
    counts_rows: ClassVar[bool] = True

    @abstractmethod
    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """What the network's outputs say about the labels."""

    @abstractmethod
    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """What ``from_pretrained`` is told of the head."""

    @abstractmethod
    def describe(self, prediction: Any, index: int, label_names: Sequence[str]) -> Row:
        """What predictions.jsonl says of one row, under `output_columns`."""

    @abstractmethod
    def describe_point(self, point: Any, index: int, label_names: Sequence[str]) -> Row:
        """The same of the network at the mean."""

    def cells(self, described: Row) -> dict[str, str]:
        """What a table on the terminal shows of a described row, by column: its numbers, unless a family says more."""
        numbers = {name: described[name] for name in self.output_columns if isinstance(described.get(name), float)}
        return {name: f"{value:.4f}" for name, value in numbers.items()}

    def label_text(self, label: Any, label_names: Sequence[str]) -> str:
        """A label, as the network learns it, for people."""
        return str(label)

    @abstractmethod
    def label_fault(self, label: Any, label_names: Sequence[str]) -> str | None:
        """What a label must be, where this is none."""

    @abstractmethod
    def read_label(self, written: Any, label_names: Sequence[str]) -> Any:
        """The label of what a file of the user's own says.

        Raises:
            DataError: it says none; the caller adds the place.
        """

    def from_text(self, label: Any) -> Any:
        """A label as the network learns it, where a CSV file has it as text; anything else as it is."""
        return label

    def names_in(self, rows: Sequence[Row], column: str, path: Path) -> tuple[str, ...]:
        """The names of the labels that occur in a file of the user's own, in the order of their ids; () without any."""
        return ()

    def check_names(self, label_names: Sequence[str]) -> str | None:
        """What is wrong with a task of these label names."""
        return None

    def row_fault(self, texts: Sequence[Any], label: Any) -> str | None:
        """What is wrong with a label, as a file has it, beside the row's texts, where all may be right alone."""
        return None

    def class_names(self, label_names: Sequence[str], number: int) -> Sequence[str]:
        """What so many classes of a prediction are called."""
        return label_names

    def auto_class(self) -> Any:
        """transformers' Auto class that loads a base model with the head."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def network_fault(self, network: Any, new_modules: Sequence[str]) -> str | None:
        """Why a base model that could be loaded is none for such a task, and what to give instead."""
        return None

    def from_file(self, rows: Sequence[Row], path: Path | str) -> list[Row]:
        """The rows of a file whose columns nobody named, under `columns`."""
        return list(rows)

    def with_labels(self, rows: Sequence[Row], column: str, label_names: Sequence[str], path: Path) -> list[Row]:
        """Copies of a file's rows, each with its label as the network learns it.

        Raises:
            DataError: a label is missing, or `read_label` refuses it.
        """
        labels = each_label(rows, column, path, lambda written: self.read_label(written, label_names))
        return [row | {column: label} for row, label in zip(rows, labels, strict=True)]

    def hold_out(
        self, rows: Sequence[Row], column: str, path: Path, *, fraction: float = 0.1, seed: int = 0
    ) -> tuple[list[Row], list[Row]]:
        """(rows to train on, rows held out); see `rows.hold_out`."""
        return hold_out(rows, column if self.stratified else None, path, fraction=fraction, seed=seed)

    def labels_of(self, rows: Sequence[Row], column: str, label_names: Sequence[str], *, by_name: bool) -> Any:
        """The labels of rows as a tensor, (example,), or None where not every row has one.

        Args:
            rows: any rows.
            column: of the labels.
            label_names: of the task.
            by_name: whether the column says labels as a file of the user's own does.
        """
        import torch

        found = []
        for row in rows:
            try:
                label = self.read_label(row[column], label_names) if by_name else self.from_text(row[column])
            except (KeyError, DataError):
                return None
            if self.label_fault(label, label_names) is not None:
                return None
            found.append(label)
        return torch.tensor(found)


def each_label(rows: Sequence[Row], column: str, path: Path, read: Callable[[Any], T]) -> list[T]:
    """What `read` makes of the label that each row of a file has.

    Raises:
        DataError: a label is missing, or `read` refuses it; names the row.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        label = written(row, column, number, path)
        try:
            found.append(read(label))
        except DataError as error:
            raise DataError(f"{path}, row {number}, column {column!r} holds {label!r}: {error}") from error
    return found


def written(row: Row, column: str, number: int, path: Path) -> Any:
    """What a row of a file says in a column.

    Raises:
        DataError: the row has no such column.
    """
    if column not in row:
        raise DataError(
            f"{path}, row {number} has no column {column!r}; it has {', '.join(row)}. Name one with --label-column."
        )
    return row[column]


@cache
def task_families() -> dict[str, TaskFamily]:
    """Every family that a module of this package defines, by name."""
    return {found.name: found() for found in classes_of(families, TaskFamily)}  # type: ignore[type-abstract]


def task_family(name: str) -> TaskFamily:
    """The family of this name.

    Raises:
        TaskError: there is none.
    """
    if name not in task_families():
        raise TaskError(f"There is no type of task {name!r}. The types are {', '.join(task_families())}.")
    return task_families()[name]
