"""Rows of a data file: JSON lines (gzipped or not) and CSV in, JSON lines out; their classes, and a hold-out."""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.files import write_file

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``.jsonl``, ``.jsonl.gz`` or ``.csv`` file, each a dictionary from column to value.

    A CSV file starts with a header row; its values stay strings. Blank lines are allowed at the end of a JSON lines
    file only, so that row numbers are line numbers.

    Raises:
        DataError: the file is missing, unreadable, of another kind, damaged or empty, or a row is malformed; the
            message names the file and, where there is one, the row.

    Example:
        >>> read_rows(Path("reviews.csv"))[0]  # doctest: +SKIP
        {'text': 'Well made.', 'label': 'good'}
    """
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path: relative ones start from {Path.cwd()}.")
    if not name.endswith((".jsonl", ".jsonl.gz", ".csv")):
        raise DataError(f"{path} is no kind of file that is read here. Give a .jsonl, .jsonl.gz or .csv file.")
    text = _text(path, _bytes(path, compressed=name.endswith(".gz")))
    rows = _csv_rows(path, text) if name.endswith(".csv") else _json_rows(path, text)
    if not rows:
        raise DataError(f"{path} has no rows. Give a file with at least one.")
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, whole or not at all; a ``.gz`` suffix compresses.

    A reader sees the old file (or none) until the new one is complete and on disk. Missing folders are made.

    Raises:
        DataError: a row holds something that JSON cannot (NaN and infinity included), or the operating system does
            not allow it; nothing is written then.
    """
    path = Path(path)
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Row {number} cannot be written to {path}: {error}. Use text, finite numbers, lists and dictionaries."
            ) from error
    data = "".join(line + "\n" for line in lines).encode()
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, mtime=0)  # no time stamp: the same rows give the same bytes
    write_file(path, data)


def hold_out(
    rows: Sequence[Row], column: str | None, path: Path, *, fraction: float = 0.1, seed: int = 0
) -> tuple[list[Row], list[Row]]:
    """(rows to train on, rows held out), each with the same share of every class as far as whole rows allow.

    Args:
        rows: with the class in `column`. A class with a single row stays in training.
        column: the label column; None for rows without classes, any of which may be held out.
        path: where the rows came from, for the error.
        fraction: held out, between 0 and 1, rounded up to whole rows.
        seed: of the choice.

    Raises:
        ConfigurationError: `fraction` outside (0, 1).
        DataError: too few rows for every class to be in both parts.
    """
    # Imported where it is needed: it would slow every start of the command line.
    from sklearn.model_selection import train_test_split

    if not 0 < fraction < 1:
        raise ConfigurationError(f"holdout={fraction!r} must be a fraction between 0 and 1, such as 0.1.")
    classes = [0 if column is None else row[column] for row in rows]
    sizes = Counter(classes)
    single = [row for row, label in zip(rows, classes, strict=True) if sizes[label] == 1]
    several = [row for row, label in zip(rows, classes, strict=True) if sizes[label] > 1]
    stratify = None if column is None else [row[column] for row in several]
    try:
        train, held_out = train_test_split(several, test_size=fraction, random_state=seed, stratify=stratify)
    except ValueError as error:
        raise DataError(
            f"{path}: {len(rows)} rows of {len(sizes)} classes are too few to hold out {fraction:g} of them with every "
            f"class in both parts ({error}). Give more rows, a larger --held-out (compare), or --eval-file (fit)."
        ) from error
    return single + train, held_out


def _bytes(path: Path, compressed: bool) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give a file that you may read.") from error
    if not compressed:
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path} is no complete gzip file ({error}). Copy or download it again, or unpack it to .jsonl."
        ) from error


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # spreadsheets put a byte order mark in front of their CSV
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8."
        ) from error


def _json_rows(path: Path, text: str) -> list[Row]:
    rows = []
    # Not splitlines(): it also breaks at characters that may stand inside a JSON string, such as U+2028.
    for number, line in enumerate(text.rstrip().split("\n") if text.strip() else (), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, row {number} is not JSON ({error}): {_excerpt(line)}. Write one JSON object per line."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {number} is no JSON object: {_excerpt(line)}. "
                'Write one per line, such as {"text": "...", "label": 0}.'
            )
        rows.append(row)
    return rows


def _csv_rows(path: Path, text: str) -> list[Row]:
    before = csv.field_size_limit(len(text) + 1)  # a text may be longer than the 131,072 characters that csv allows
    try:
        return _csv_fields(path, text)
    finally:
        csv.field_size_limit(before)


def _csv_fields(path: Path, text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise DataError(f"{path}: two columns of the header have one name ({', '.join(header)}). Rename one.")
        for fields in reader:
            if not fields:  # a blank line
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, row {len(rows) + 1} (line {reader.line_num}) has {len(fields)} fields, the header has "
                    f"{len(header)} ({', '.join(header)}): {_excerpt(','.join(fields))}. "
                    "Put text that holds a comma in double quotes."
                )
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num} is not CSV ({error}). Close every quote, and double quotes inside text."
        ) from error
    return rows


def _excerpt(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[:length] + "...")
