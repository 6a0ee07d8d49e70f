"""The folder of a study: made when new, gone on with when it is this one, refused else."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bayes_lora.errors import FolderBusyError, RunExistsError
from bayes_lora.files import read_json, write_json

STUDY_FILE = "study.json"
_LOCK_FILE = ".lock"  # the system frees it when its process ends, however that ends


def open_study(folder: Path, settings: Mapping[str, Any], *, growing: Collection[str]) -> None:
    """Make the folder of a study, or check that it is this study's, to go on with it.

    Args:
        folder: a new or empty one, or that of a study with the same settings.
        settings: all that the study's results depend on.
        growing: those of the settings that may change, since what is there stays as good as it was.

    Raises:
        RunExistsError: it holds another study, or something else.
    """
    path, wanted = folder / STUDY_FILE, json.loads(json.dumps(settings))
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        write_json(path, wanted)
        return
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise RunExistsError(
            f"{folder} is not empty, and its {STUDY_FILE} is missing or damaged ({error}). Choose another --out."
        ) from error
    known = found if isinstance(found, dict) else {}
    odd = sorted(name for name in wanted.keys() | known.keys() if known.get(name) != wanted.get(name))
    if not isinstance(found, dict) or set(odd) - set(growing):
        raise RunExistsError(
            f"{folder} holds a study with other settings ({', '.join(n for n in odd if n not in growing)}; see its "
            f"{STUDY_FILE}). To go on with that one give the same options; for a new one choose another --out."
        )
    write_json(path, wanted)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Around the work on a study: two processes would train in the same folders.

    Raises:
        FolderBusyError: another process works on it.
    """
    lock = FileLock(folder / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FolderBusyError(
            f"another process works on {folder}. Wait for it, or stop it; for a second study choose another --out."
        ) from error
    try:
        yield
    finally:
        lock.release()
