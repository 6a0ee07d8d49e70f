"""Predictions of one method and seed in a parquet file, from which every metric can be had again.

One row for each example, in the order of the split:

    row_id    string                          says which example it is, see `row_id`
    label     int64, null where unlabelled; of other labels than classes a list of int64 or float64
    logits    sample x class, float32 or float64, exactly as predicted; of other labels as `Likelihood.pack` has them,
              all but the sample in one dimension
    foreignness   float64, only where predictions have one, see `Prediction`

The file's schema metadata holds, as JSON under ``bayes_lora``, the version of this layout, the fields of `About` and a
checksum of all there is; of other labels than classes also the likelihood's kind and settings, and the shapes of a
row's label and logits. ``pandas.read_parquet`` and DuckDB open it as it is.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from bayes_lora import __version__
from bayes_lora.errors import BayesLoRAError, DataError
from bayes_lora.files import write_file
from bayes_lora.inference.storage.posteriors import describe_likelihood
from bayes_lora.inference.storage.prediction_columns import (
    LOGIT_TYPES,
    holds_labels,
    label_column,
    labels_in,
    logits_in,
    unusable,
)
from bayes_lora.metrics.drawn_prediction import DrawnPrediction
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import Classification, Likelihood
from bayes_lora.models.likelihoods.kinds import likelihood_kinds

LAYOUT = 1
_KEY = b"bayes_lora"
_COLUMNS = ("row_id", "label", "logits")
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
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type is str:
                right = isinstance(value, str) and value != ""
            elif one.type is bool:
                right = isinstance(value, bool)
            else:
                number = isinstance(value, int if one.type is int else int | float) and not isinstance(value, bool)
                right = number and math.isfinite(value) and value >= 0
            if not right:
                raise DataError(f"{one.name}={value!r} of a stored prediction must be {_KINDS[one.type]}.")


@dataclass(frozen=True)
class StoredPrediction:
    """A prediction, its rows and where it came from.

    Attributes:
        prediction: what the likelihood says it is; of classes, logits (sample, example, class) and labels (example,) or
            None.
        row_ids: (example,), see `row_id`.
        about: method, seed, task, split, cost.
        likelihood: of the labels.
    """

    prediction: Any
    row_ids: tuple[str, ...]
    about: About
    likelihood: Likelihood = field(default_factory=Classification)

    @cached_property
    def packed(self) -> Tensor:
        """(sample, example, ...), see `Likelihood.pack`."""
        return self.likelihood.pack(self.prediction)


def row_id(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """SHA-256 of what the named columns of a row say: the same text gives the same id on any machine."""
    text = json.dumps([row[name] for name in columns], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_prediction(path: Path, stored: StoredPrediction) -> None:
    """Write one prediction, whole or not at all; missing folders are made, an old file is replaced.

    Raises:
        DataError: logits that are not (sample, example, class) in float32 or float64 with at least one of each, row
            ids or labels that are not as many as the examples, or a place that cannot be written to.
        ConfigurationError: a likelihood that files cannot name.

    Example:
        >>> about = About("map", 0, "mrpc", "validation", 312.0, 4.1, 2**30)
        >>> stored = StoredPrediction(prediction, ids, about)  # doctest: +SKIP
        >>> write_prediction(Path("out/predictions/map-0.parquet"), stored)  # doctest: +SKIP
    """
    logits, labels = stored.packed, stored.prediction.labels
    of_classes = type(stored.likelihood) is Classification
    if (logits.dim() != 3 if of_classes else logits.dim() < 3) or not logits.numel() or logits.dtype not in LOGIT_TYPES:
        raise DataError(
            f"{path}: logits to store must be (sample, example, class) in float32 or float64, at least one of each; "
            f"got {tuple(logits.shape)}, {logits.dtype}. Pass a prediction as `predict` gives it."
        )
    num_samples, num_examples = logits.shape[:2]
    fits = labels is None or (labels.shape == (num_examples,) if of_classes else len(labels) == num_examples)
    if len(stored.row_ids) != num_examples or not fits:
        raise DataError(
            f"{path}: {num_examples} predicted rows, {len(stored.row_ids)} row ids and labels of shape "
            f"{None if labels is None else tuple(labels.shape)} do not belong together. Pass those of the same rows."
        )
    if of_classes and labels is not None and labels.is_floating_point():
        raise DataError(f"{path}: labels of type {labels.dtype} are no class ids. Pass integers.")
    flat = pa.array(logits.detach().transpose(0, 1).contiguous().numpy().reshape(-1))
    by_class = pa.FixedSizeListArray.from_arrays(flat, logits[0, 0].numel())
    columns = {
        "row_id": pa.array(stored.row_ids, pa.string()),
        "label": pa.nulls(num_examples, pa.int64()) if labels is None else label_column(labels),
        "logits": pa.FixedSizeListArray.from_arrays(by_class, num_samples),
    }
    foreignness = getattr(stored.prediction, "foreignness", None)
    if foreignness is not None:
        columns["foreignness"] = pa.array(foreignness.double().numpy())
    stored = replace(stored, about=replace(stored.about, block_size=getattr(stored.prediction, "block_size", 1)))
    kind: dict[str, Any] = {}
    if not of_classes:
        shapes = {"label": [] if labels is None else list(labels.shape[1:]), "logits": list(logits.shape[2:])}
        kind = {"likelihood": asdict(describe_likelihood(stored.likelihood)), "shapes": shapes}
    described = {"layout": LAYOUT, "sha256": _checksum(stored), **_described(stored.about), **kind}
    description = json.dumps(described)
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
        raise unusable(path, f"cannot be read ({str(error).splitlines()[0]}): it is cut or damaged") from error
    about, checksum, likelihood, shapes = _description(path, table.schema.metadata or {})
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise unusable(path, f"has no column {' or '.join(missing)}")
    if not table.num_rows:
        raise unusable(path, "has no rows")
    ids, labels = table["row_id"], table["label"]
    if not pa.types.is_string(ids.type) or ids.null_count or not holds_labels(labels.type, of_classes=not shapes):
        raise unusable(path, f"has row ids of type {ids.type} and labels of type {labels.type}, or rows without an id")
    if labels.null_count not in (0, table.num_rows):
        raise unusable(path, f"has {labels.null_count} unlabelled rows of {table.num_rows}: all or none can be")
    known, packed = None if labels.null_count else labels_in(labels), logits_in(path, table["logits"])
    if shapes:
        try:
            packed = packed.reshape(*packed.shape[:2], *shapes["logits"])
            known = None if known is None else known.reshape(len(packed[0]), *shapes["label"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise unusable(path, f"has rows of another shape than it says ({error})") from error
    prediction = likelihood.unpack(packed, known)
    if isinstance(prediction, Prediction):
        own = labels_in(table["foreignness"]) if "foreignness" in table.column_names else None
        prediction = replace(prediction, block_size=about.block_size, foreignness=own)
    elif isinstance(prediction, DrawnPrediction):
        prediction = replace(prediction, block_size=about.block_size)
    stored = StoredPrediction(prediction, tuple(ids.to_pylist()), about, likelihood)
    stored.__dict__["packed"] = packed  # as it stands in the file, whose checksum is of it
    if _checksum(stored) != checksum:
        raise unusable(path, "does not hold what was written: its content and its checksum disagree")
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


def _description(path: Path, metadata: dict[bytes, bytes]) -> tuple[About, str, Likelihood, dict[str, list[int]]]:
    try:
        described: dict[str, Any] = json.loads(metadata[_KEY])
        layout, checksum = described.pop("layout"), described.pop("sha256", "")
        saved, shapes = described.pop("likelihood", None), described.pop("shapes", {})
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise unusable(path, "does not say what it holds: no readable 'bayes_lora' in its schema's metadata") from error
    if layout != LAYOUT:
        raise DataError(
            f"{path} has layout {layout!r}, and this version of bayes_lora reads {LAYOUT}. Install the version that "
            f"wrote it ({described.get('library_version')}), or predict again."
        )
    try:
        likelihood: Likelihood = Classification()
        if saved is not None:
            likelihood = likelihood_kinds()[saved["kind"]].from_settings(nn.Module(), saved["settings"])
        return About(**described), checksum, likelihood, shapes
    except (KeyError, TypeError, BayesLoRAError) as error:
        raise unusable(path, f"does not describe its prediction properly ({error})") from error


def _described(about: About) -> dict[str, Any]:
    """As JSON holds it: what version 0.1 did not know is left out where it says nothing."""
    found = asdict(about)
    if about.block_size == 1:
        del found["block_size"]
    return found


def _checksum(stored: StoredPrediction) -> str:
    """SHA-256 of the description, the rows, the labels and the bytes of the logits; where the likelihood is no
    classification, also of its kind and settings."""
    logits, labels = stored.packed, stored.prediction.labels
    described = [_described(stored.about), stored.row_ids, tuple(logits.shape), str(logits.dtype), labels is not None]
    if type(stored.likelihood) is not Classification:
        described.append(asdict(describe_likelihood(stored.likelihood)))
    digest = hashlib.sha256(json.dumps(described).encode())
    if labels is not None:
        labels = labels.double() if labels.is_floating_point() else labels.long()
    own = getattr(stored.prediction, "foreignness", None)
    for values in (value for value in (logits, labels, own) if value is not None):
        digest.update(values.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
