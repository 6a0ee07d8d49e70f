"""Rows that are files, opened when they are needed."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.inputs.inputs import Encoded, Inputs, ReadableTask
from bayes_lora.experiments.rows.folders import CHECKSUM
from bayes_lora.experiments.rows.rows import Row

_MOST_KEPT = 2**28  # bytes of features that stay in memory, of each part of the rows


@dataclass(frozen=True)
class EncodedFiles:
    """Files as the network reads them, by index; what is not in `kept` is read anew. Their labels are by name.

    Attributes:
        places: (example,), the path of each file, and its checksum where one is known.
        labels: (example,), or None.
        lengths: (example,), how much there is in each.
        read: from these to the network's inputs, each a tensor without a dimension for examples.
        kept: inputs that have been read, by path.
    """

    places: tuple[tuple[str, str | None], ...]
    labels: tuple[Any, ...] | None
    lengths: tuple[int, ...]
    read: Callable[[str, str | None], Mapping[str, Any]] = field(repr=False)
    kept: Mapping[str, Mapping[str, Any]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | str) -> Any:
        if isinstance(index, str):
            return list({"labels": self.labels}[index] or ())
        place, checksum = self.places[index]
        features = self.kept.get(place) or self.read(place, checksum)
        return dict(features) if self.labels is None else {**features, "labels": self.labels[index]}

    def select(self, indices: Sequence[int]) -> "EncodedFiles":
        """Some of the files, in this order."""
        labels = None if self.labels is None else tuple(self.labels[index] for index in indices)
        places = tuple(self.places[index] for index in indices)
        lengths = tuple(self.lengths[index] for index in indices)
        return EncodedFiles(places, labels, lengths, self.read, self.kept)


class Files(Inputs):
    """One file for each row, whose checksum may stand beside it."""

    identity = (CHECKSUM,)

    def fault(self, value: Any) -> str | None:
        """A path."""
        return None if isinstance(value, str) else "it must be the path of a file"

    @abstractmethod
    def features(self, data: bytes, processor: Any, limit: int | None) -> Mapping[str, Any]:
        """What the network reads of a file's bytes: tensors by name, without a dimension for examples.

        Raises:
            DataError: the bytes are nothing that can be read; the caller adds the place.
        """

    @abstractmethod
    def length(self, features: Mapping[str, Any]) -> int:
        """How much there is in what `features` gives."""

    def limit(self, max_length: int | None) -> int | None:
        """What is meant by a `max_length`, or by none.

        Raises:
            ConfigurationError: there is no such.
        """
        return max_length

    def encode(
        self,
        task: ReadableTask,
        rows: Sequence[Row],
        processor: Any,
        *,
        max_length: int | None,
        labels: Sequence[Any] | None,
    ) -> EncodedFiles:
        """Every file is read once here, so that a broken one is found before anything is trained; where all of them
        are small, they stay in memory.

        Raises:
            DataError: a file is missing, broken, or another one than its checksum says.
            ConfigurationError: see `limit`.
        """
        limit = self.limit(max_length)

        def read(place: str, checksum: str | None) -> Mapping[str, Any]:
            return self._read(place, checksum, processor, limit)

        places = tuple((str(task.texts(row)[0]), row.get(CHECKSUM)) for row in rows)
        kept: dict[str, Mapping[str, Any]] = {}
        lengths, size = [], 0
        for place, checksum in places:
            features = read(place, checksum)
            lengths.append(self.length(features))
            size += sum(value.numel() * value.element_size() for value in features.values())
            if size <= _MOST_KEPT:
                kept[place] = features
        return EncodedFiles(places, None if labels is None else tuple(labels), tuple(lengths), read, kept)

    def _read(self, place: str, checksum: str | None, processor: Any, limit: int | None) -> Mapping[str, Any]:
        try:
            data = Path(place).read_bytes()
        except OSError as error:
            raise DataError(f"{place} cannot be read: {error.strerror or error}. Put the file back.") from error
        if checksum is not None and hashlib.sha256(data).hexdigest() != checksum:
            raise DataError(f"{place} is not the file that it was: its checksum is another. Put the old one back.")
        try:
            return self.features(data, processor, limit)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error

    def lengths(self, data: Encoded) -> Sequence[int]:
        """As they were when the files were read."""
        return tuple(data.lengths)
