"""What the commands write: whether there is a place for it, and errors that say what to type next."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError, RunExistsError

# The files of a run folder.
CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE = "config.json", "metrics.json", "predictions.jsonl"
HISTORY_FILE, ENVIRONMENT_FILE = "history.jsonl", "environment.json"
POSTERIOR_FOLDER, CHECKPOINTS_FOLDER = "posterior", "checkpoints"


def check_output(path: Path, *, overwrite: bool) -> None:
    """Whether predictions can be written there, asked before they are computed.

    Raises:
        DataError: it is a folder, exists and `overwrite` was not said, lies in a file, or has another suffix.
    """
    if path.is_dir():
        raise DataError(f"--output {path} is a folder. Name a file, such as {path / 'predictions.jsonl'}.")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already. Choose another --output, or say --overwrite.")
    if not path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"--output {path} must end in .jsonl or .jsonl.gz: predictions are written as JSON lines.")
    _check_above(path, "--output")


def check_files(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Whether these files can be written into a folder, asked before they are made.

    Raises:
        RunExistsError: one is there and `overwrite` was not said.
        DataError: the folder is a file, or lies in one.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file, so nothing can be written into it. Choose another --out.")
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise RunExistsError(f"{folder / there[0]} exists already. Choose another --out, or say --overwrite.")
    _check_above(folder, "--out")


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Whether `claim_folder` would make this folder, without touching anything.

    Raises:
        RunExistsError: it exists and `overwrite` was not said, or it is not a run that may be deleted.
        DataError: it lies in a file.
    """
    _check_above(folder, "--out")
    if not folder.exists():
        return
    run = _described_run(folder)
    if not overwrite:
        interrupted = run is not None and run.get("source") is not None and not (folder / METRICS_FILE).exists()
        resume = f" It is unfinished: 'bayes-lora fit --resume {folder}' goes on with it." if interrupted else ""
        raise RunExistsError(
            f"{folder} exists already. Choose another --out, or say --overwrite to replace it.{resume}"
        )
    if not folder.is_dir() or (run is None and any(folder.iterdir())):
        raise RunExistsError(f"{folder} is no run folder, so --overwrite will not delete it. Choose another --out.")


def claim_folder(folder: Path, *, overwrite: bool) -> None:
    """Make an empty folder for a run; an old run goes here, so that all that can fail early should have been tried.

    Raises:
        RunExistsError: see `check_folder`.
        DataError: the operating system does not allow it.
    """
    check_folder(folder, overwrite=overwrite)
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror or error}. Choose another --out.") from error


def _described_run(folder: Path) -> dict[str, Any] | None:
    """The run's config.json, or None. A saved base model has a file of that name too, which says other things."""
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"task", "base_model", "posterior"} <= set(found) else None


def _check_above(path: Path, option: str) -> None:
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise DataError(f"{above} is a file, so {path} cannot be made inside it. Choose another {option}.")
