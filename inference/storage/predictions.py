"""Predictions of one method and seed in a parquet file, from which every metric can be had again.

One row for each example, in the order of the split:

    row_id    string                          says which example it is, see `row_id`
    label     int64, null where unlabelled
    logits    sample x class, float32 or float64, exactly as predicted

The file's schema metadata holds, as JSON under ``bayes_lora``, the version of this layout, the fields of `About` and a
checksum of all there is. ``pandas.read_parquet`` and DuckDB open it as it is.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from bayes_lora import __version__
from bayes_lora.errors import DataError
from bayes_lora.files import write_file
from bayes_lora.metrics.prediction import Prediction

LAYOUT = 1
_KEY = b"bayes_lora"
_COLUMNS = ("row_id", "label", "logits")
_TYPES = {torch.float32: pa.float32(), torch.float64: pa.float64()}
_KINDS: dict[Any, str] = {str: "a text", bool: "true or false", int: "an integer >= 0", float: "a number >= 0"}


@dataclass(frozen=True)
class About:
    """What was predicted, by what, and what it cost.

    Attributes:
        method: name of the method, as at the command line.
        seed: of training and prediction.
        task: name of the task the rows come from.
        split: of that task.
        train_seconds: wall time of all training that the method needs, shared with other methods or not.
        predict_seconds: wall time of the prediction.
        peak_memory_bytes: the most that was held at once in training or prediction.
        library_version: of bayes_lora, when it was predicted.
        block_size: samples that belong together by design; `write_prediction` takes it from the prediction.
    """

    method: str
    seed: int
    task: str
    split: str
    train_seconds: float
    predict_seconds: float
    peak_memory_bytes: int
    library_version: str = __version__
    block_size: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is str:
                right = isinstance(value, str) and value != ""
            elif field.type is bool:
                right = isinstance(value, bool)
            else:
                number = isinstance(value, int if field.type is int else int | float) and not isinstance(value, bool)
                right = number and math.isfinite(value) and value >= 0
            if not right:
                raise DataError(f"{field.name}={value!r} of a stored prediction must be {_KINDS[field.type]}.")


@dataclass(frozen=True)
class StoredPrediction:
    """A prediction, its rows and where it came from.

    Attributes:
        prediction: logits (sample, example, class) and labels (example,) or None.
        row_ids: (example,), see `row_id`.
        about: method, seed, task, split, cost.
    """

    prediction: Prediction
    row_ids: tuple[str, ...]
    about: About


def row_id(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """SHA-256 of what the named columns of a row say: the same text gives the same id on any machine."""
    text = json.dumps([row[name] for name in columns], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_prediction(path: Path, stored: StoredPrediction) -> None:
    """Write one prediction, whole or not at all; missing folders are made, an old file is replaced.

    Raises:
        DataError: logits that are not (sample, example, class) in float32 or float64 with at least one of each, row
            ids or labels that are not as many as the examples, or a place that cannot be written to.

    Example:
        >>> about = About("map", 0, "mrpc", "validation", 312.0, 4.1, 2**30)
        >>> stored = StoredPrediction(prediction, ids, about)  # doctest: +SKIP
        >>> write_prediction(Path("out/predictions/map-0.parquet"), stored)  # doctest: +SKIP
    """
    logits, labels = stored.prediction.logits, stored.prediction.labels
    if logits.dim() != 3 or not logits.numel() or logits.dtype not in _TYPES:
        raise DataError(
            f"{path}: logits to store must be (sample, example, class) in float32 or float64, at least one of each; "
            f"got {tuple(logits.shape)}, {logits.dtype}. Pass a prediction as `predict` gives it."
        )
    num_samples, num_examples, num_classes = logits.shape
    if len(stored.row_ids) != num_examples or (labels is not None and labels.shape != (num_examples,)):
        raise DataError(
            f"{path}: {num_examples} predicted rows, {len(stored.row_ids)} row ids and labels of shape "
            f"{None if labels is None else tuple(labels.shape)} do not belong together. Pass those of the same rows."
        )
    if labels is not None and labels.is_floating_point():
        raise DataError(f"{path}: labels of type {labels.dtype} are no class ids. Pass integers.")
    flat = pa.array(logits.detach().permute(1, 0, 2).contiguous().numpy().reshape(-1))
    by_class = pa.FixedSizeListArray.from_arrays(flat, num_classes)
    columns = {
        "row_id": pa.array(stored.row_ids, pa.string()),
        "label": pa.nulls(num_examples, pa.int64()) if labels is None else pa.array(labels.numpy(), pa.int64()),
        "logits": pa.FixedSizeListArray.from_arrays(by_class, num_samples),
    }
    stored = replace(stored, about=replace(stored.about, block_size=stored.prediction.block_size))
    description = json.dumps({"layout": LAYOUT, "sha256": _checksum(stored), **_described(stored.about)})
    table = pa.table(columns).replace_schema_metadata({_KEY: description.encode()})
    sink = pa.BufferOutputStream()
    # Logits hardly repeat: a dictionary of them would only cost.
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    write_file(path, sink.getvalue().to_pybytes())


def read_prediction(path: Path) -> StoredPrediction:
    """Read what `write_prediction` wrote: the same logits, bit by bit.

    Raises:
        DataError: the file is missing, cut, damaged or of another kind; a column or a description is missing or of
            the wrong type or shape.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist. Type the 'bayes-lora compare' command that was to write it.")
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except (OSError, pa.ArrowException) as error:
        raise _unusable(path, f"cannot be read ({str(error).splitlines()[0]}): it is cut or damaged") from error
    about, checksum = _description(path, table.schema.metadata or {})
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise _unusable(path, f"has no column {' or '.join(missing)}")
    if not table.num_rows:
        raise _unusable(path, "has no rows")
    ids, labels = table["row_id"], table["label"]
    if not pa.types.is_string(ids.type) or ids.null_count or not pa.types.is_int64(labels.type):
        raise _unusable(path, f"has row ids of type {ids.type} and labels of type {labels.type}, or rows without an id")
    if labels.null_count not in (0, table.num_rows):
        raise _unusable(path, f"has {labels.null_count} unlabelled rows of {table.num_rows}: all or none can be")
    known = None if labels.null_count else torch.from_numpy(np.array(labels.to_numpy()))
    prediction = Prediction(_logits(path, table["logits"]), known, block_size=about.block_size)
    stored = StoredPrediction(prediction, tuple(ids.to_pylist()), about)
    if _checksum(stored) != checksum:
        raise _unusable(path, "does not hold what was written: its content and its checksum disagree")
    return stored


def require_same_rows(first: StoredPrediction, second: StoredPrediction) -> None:
    """Whether a paired comparison of the two means anything.

    Raises:
        DataError: other rows, another order, or other labels.
    """
    one, two = first.prediction.labels, second.prediction.labels
    same_labels = one is two if one is None or two is None else torch.equal(one, two)
    if first.row_ids != second.row_ids or not same_labels:
        named = " and ".join(f"{s.about.method} (seed {s.about.seed}, {len(s.row_ids)} rows)" for s in (first, second))
        raise DataError(
            f"{named} were not predicted on the same rows with the same labels in the same order, so they cannot be "
            "compared row by row. Predict both again with one 'bayes-lora compare' command, into an empty --out folder."
        )


def _description(path: Path, metadata: dict[bytes, bytes]) -> tuple[About, str]:
    try:
        described: dict[str, Any] = json.loads(metadata[_KEY])
        layout, checksum = described.pop("layout"), described.pop("sha256", "")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _unusable(
            path, "does not say what it holds: no readable 'bayes_lora' in its schema's metadata"
        ) from error
    if layout != LAYOUT:
        raise DataError(
            f"{path} has layout {layout!r}, and this version of bayes_lora reads {LAYOUT}. Install the version that "
            f"wrote it ({described.get('library_version')}), or predict again."
        )
    try:
        return About(**described), checksum
    except (TypeError, DataError) as error:
        raise _unusable(path, f"does not describe its prediction properly ({error})") from error


def _described(about: About) -> dict[str, Any]:
    """As JSON holds it: what version 0.1 did not know is left out where it says nothing."""
    found = asdict(about)
    if about.block_size == 1:
        del found["block_size"]
    return found


def _checksum(stored: StoredPrediction) -> str:
    """SHA-256 of the description, the rows, the labels and the bytes of the logits."""
    logits, labels = stored.prediction.logits, stored.prediction.labels
    described = [_described(stored.about), stored.row_ids, tuple(logits.shape), str(logits.dtype), labels is not None]
    digest = hashlib.sha256(json.dumps(described).encode())
    for values in (logits,) if labels is None else (logits, labels.long()):
        digest.update(values.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _logits(path: Path, column: pa.ChunkedArray) -> Tensor:
    """(sample, example, class) of a column of lists of lists."""
    kind = column.type
    nested = pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(kind.value_type)
    if not nested or kind.value_type.value_type not in _TYPES.values():
        raise _unusable(path, f"has logits of type {kind}, not sample x class in float32 or float64")
    num_samples, num_classes = kind.list_size, kind.value_type.list_size
    by_class = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    flat = by_class.flatten()
    if (
        column.null_count
        or by_class.null_count
        or flat.null_count
        or len(flat) != len(column) * num_samples * num_classes
    ):
        raise _unusable(path, f"lacks logits: {len(flat)} for {len(column)} rows of {num_samples} x {num_classes}")
    values = torch.from_numpy(np.array(flat.to_numpy()))
    return values.reshape(len(column), num_samples, num_classes).transpose(0, 1).contiguous()


def _unusable(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}. Delete it and type the same 'bayes-lora compare' command again: it predicts what is missing."
    )
