"""Files that appear whole or not at all."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError

JSON_LIMIT = 16 * 2**20  # bytes; the description of 100,000 adapters has fewer


def read_json(path: Path) -> Any:
    """The content of a JSON file that should be small.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or so large or so deeply nested that reading it on would take memory without bound.
    """
    with path.open("rb") as file:
        data = file.read(JSON_LIMIT + 1)
    if len(data) > JSON_LIMIT:
        raise ValueError(f"it has more than {JSON_LIMIT:,} bytes")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one (or none) until the new one is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is atomic within one file system only.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; missing folders are made.

    Raises:
        DataError: the operating system does not allow it.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}. Choose another place, or free this one."
        ) from error


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        DataError: the operating system does not allow it.
    """
    write_file(path, (json.dumps(data, indent=2) + "\n").encode())
