"""Which checkpoints of a training run are whole."""

import json
import re
from pathlib import Path

from bayes_lora.errors import CheckpointFileError
from bayes_lora.files import read_json, sha256_of, write_whole
from bayes_lora.sealed_files import Format

SEAL_FILE = "complete.json"
_FORMAT = Format(CheckpointFileError, "Resume from an earlier checkpoint.")


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint whole: write the checksum of each of its files, last and at once.

    Whatever stops the process before leaves a folder without this file, which `newest_whole` passes over.
    """
    digests = {
        path.name: sha256_of(path) for path in sorted(checkpoint.iterdir()) if path.is_file() and path.name != SEAL_FILE
    }
    write_whole(checkpoint / SEAL_FILE, json.dumps(digests, indent=2).encode())


def require_whole(checkpoint: Path) -> None:
    """Check a checkpoint against its seal.

    Raises:
        CheckpointFileError: it has none, or a file is missing or changed; names the file.
    """
    path = checkpoint / SEAL_FILE
    try:
        digests = read_json(path)
        if not isinstance(digests, dict) or not digests:
            raise ValueError("it holds no checksums")
    except (OSError, ValueError) as error:
        raise CheckpointFileError(
            f"{checkpoint} is not a whole checkpoint: its {SEAL_FILE} is missing or damaged ({error}), so it was cut "
            "short. Resume from an earlier one, or from the run's folder, which finds the newest whole one."
        ) from error
    for name, digest in digests.items():
        _FORMAT.require_file(checkpoint / name, digest, SEAL_FILE)


def whole_checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints in a training folder, the earliest first."""
    return [path for path in reversed(_newest_first(folder)) if _is_whole(path)]


def newest_whole(folder: Path) -> Path | None:
    """The whole checkpoint of the most steps in a training folder, or None."""
    return next(filter(_is_whole, _newest_first(folder)), None)


def _newest_first(folder: Path) -> list[Path]:
    numbered = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def _is_whole(checkpoint: Path) -> bool:
    try:
        require_whole(checkpoint)
    except CheckpointFileError:
        return False
    return True


_STEP = re.compile(r"checkpoint-(\d+)")
