"""Labels and logits as columns of a parquet file."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bayes_lora.errors import DataError

LOGIT_TYPES = {torch.float32: pa.float32(), torch.float64: pa.float64()}


def label_column(labels: Tensor) -> Any:
    """Labels (example, ...): integers or floating-point numbers, a list of them where a row has several."""
    values = labels.double() if labels.is_floating_point() else labels.long()
    flat = pa.array(values.contiguous().reshape(-1).numpy())
    return flat if labels.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, labels[0].numel())


def holds_labels(kind: Any, *, of_classes: bool) -> bool:
    """Whether `label_column` gives a column of this type."""
    if of_classes:
        return bool(pa.types.is_int64(kind))
    inner = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    return bool(pa.types.is_int64(inner) or pa.types.is_float64(inner))


def labels_in(column: pa.ChunkedArray) -> Tensor:
    """(example,), or (example, number)."""
    nested = pa.types.is_fixed_size_list(column.type)
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks]) if nested else column
    values = torch.from_numpy(np.array(flat.to_numpy()))
    return values.reshape(len(column), -1) if nested else values


def logits_in(path: Path, column: pa.ChunkedArray) -> Tensor:
    """(sample, example, class) of a column of lists of lists."""
    kind = column.type
    nested = pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(kind.value_type)
    if not nested or kind.value_type.value_type not in LOGIT_TYPES.values():
        raise unusable(path, f"has logits of type {kind}, not sample x class in float32 or float64")
    num_samples, num_classes = kind.list_size, kind.value_type.list_size
    by_class = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    flat = by_class.flatten()
    if (
        column.null_count
        or by_class.null_count
        or flat.null_count
        or len(flat) != len(column) * num_samples * num_classes
    ):
        raise unusable(path, f"lacks logits: {len(flat)} for {len(column)} rows of {num_samples} x {num_classes}")
    values = torch.from_numpy(np.array(flat.to_numpy()))
    return values.reshape(len(column), num_samples, num_classes).transpose(0, 1).contiguous()


def unusable(path: Path, what: str) -> DataError:
    """The error of a file that cannot be used."""
    return DataError(
        f"{path} {what}. Delete it and type the same 'bayes-lora compare' command again: it predicts what is missing."
    )
