"""What every way of turning rows into a network's inputs has."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from bayes_lora.experiments.rows.rows import Row

# Imports of transformers, torch and what opens files stand inside functions: reading rows needs none of them.


class ReadableTask(Protocol):
    """What is asked of a task whose rows are turned into inputs."""

    @property
    def name(self) -> str:
        """As errors call it."""

    @property
    def max_length(self) -> int:
        """Tokens after which a row is cut, unless somebody says otherwise."""

    def texts(self, row: Row) -> tuple[Any, ...]:
        """What the columns with the input say."""


Encoded = Any
"""Rows as a network reads them: by index, with their number, ``select(indices)`` and the column "labels", as of a
``datasets.Dataset``."""


class Inputs(ABC):
    """One way in which rows become what a network reads.

    Attributes:
        network: what a base model for it is called, in errors.
        suggested: names of such base models; none where all that have a short name are.
        suffixes: of the files that hold the rows, one in each, in a folder for each class; none where rows are lines of
            one file.
        called: what a row is, on a model card; none where its texts have names.
        max_length: tokens after which a row of a file is cut, unless something else is said.
        identity: columns that say what a row is on any machine; none where all of its columns do.
    """

    network: ClassVar[str]
    suggested: ClassVar[tuple[str, ...]] = ()
    suffixes: ClassVar[tuple[str, ...]] = ()
    called: ClassVar[tuple[str, ...]] = ()
    max_length: ClassVar[int] = 128
    identity: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def fault(self, value: Any) -> str | None:
        """What the input of a row must be, where this is none."""

    def shown(self, value: Any) -> str:
        """An input as a table shows it."""
        return str(value)

    @abstractmethod
    def load_processor(self, source: str) -> Any:
        """The base model's tokenizer, image processor or feature extractor; errors are transformers' own."""

    # Most leave nothing open.
    def settle(self, name: str, network: Any, processor: Any) -> None:  # noqa: B027
        """Make network and processor agree, where a base model leaves something open.

        Raises:
            BaseModelError: they cannot; `name` is the base model's.
        """

    @abstractmethod
    def encode(
        self,
        task: ReadableTask,
        rows: Sequence[Row],
        processor: Any,
        *,
        max_length: int | None,
        labels: Sequence[Any] | None,
    ) -> Encoded:
        """Rows as the network reads them.

        Args:
            task: of the rows.
            rows: checked rows, at least one.
            processor: of the base model.
            max_length: after which a row is cut, in the units of these inputs; None takes the usual.
            labels: of the rows, as the network learns them, or None.

        Raises:
            DataError: a row that cannot be read, or of which nothing is left.
            ConfigurationError: a `max_length` that cannot be.
        """

    @abstractmethod
    def lengths(self, data: Encoded) -> Sequence[int]:
        """How much there is in each encoded row: in batches of rows of like length little is padding."""

    @abstractmethod
    def collate(self, processor: Any) -> Any:
        """Makes a batch of a list of encoded rows."""
