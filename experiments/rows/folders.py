"""Rows that are files in folders: one folder for each class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bayes_lora.errors import DataError
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.files import sha256_of

FILE, CLASS, CHECKSUM = "file", "label", "sha256"
"""The columns of such a row: its path, the name of its folder, and its checksum, which says what it is anywhere."""


def class_rows(folder: Path, suffixes: Sequence[str]) -> list[Row]:
    """A row for each file in ``folder/<class>/``, by class and name. Hidden files and folders are passed over.

    Args:
        folder: that of the classes.
        suffixes: of the files that count, in lower case.

    Raises:
        DataError: no such folder, or a class without files, a file outside of a class, of another kind or deeper down:
            each may be a mistake, and would otherwise be left out in silence.

    Example:
        >>> class_rows(Path("digits/train"), (".png",))[0]  # doctest: +SKIP
        {'file': 'digits/train/0/0000.png', 'label': '0', 'sha256': '3b9f...'}
    """
    rows = []
    for entry in _entries(folder):
        if not entry.is_dir():
            raise DataError(
                f"{entry} is in the folder of no class. Files are expected in {folder}/CLASS/. Move it, or take it out."
            )
        rows += _of_class(entry, suffixes)
    if not rows:
        raise DataError(
            f"{folder} has no folders. Files are expected in {folder}/CLASS/, with a folder for each class."
        )
    return rows


def file_rows(place: Path, suffixes: Sequence[str]) -> list[Row]:
    """A row for a file, or for each file in a folder and in its folders; one in these has their name as its class.

    Raises:
        DataError: nothing there, a file of another kind, or one deeper down.
    """
    if place.is_file():
        return [_row(place, suffixes)]
    rows = []
    for entry in _entries(place):
        rows += _of_class(entry, suffixes) if entry.is_dir() else [_row(entry, suffixes)]
    if not rows:
        raise DataError(f"{place} has no files. Give a folder with some ({', '.join(suffixes)}), or one file.")
    return rows


def _of_class(folder: Path, suffixes: Sequence[str]) -> list[Row]:
    rows = [{**_row(entry, suffixes), CLASS: folder.name} for entry in _entries(folder)]
    if not rows:
        raise DataError(f"{folder} has no files. Add some ({', '.join(suffixes)}), or take the folder away.")
    return rows


def _row(path: Path, suffixes: Sequence[str]) -> Row:
    if path.is_dir():
        raise DataError(f"{path} is a folder inside that of a class. Move its files up, or take it away.")
    if path.suffix.lower() not in suffixes:
        raise DataError(f"{path} is none of {', '.join(suffixes)}. Convert it, or take it out.")
    return {FILE: str(path), CHECKSUM: sha256_of(path)}


def _entries(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Check the path: relative ones start from {Path.cwd()}.")
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
