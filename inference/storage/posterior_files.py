"""The files of a saved posterior, and how they are known to be whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayes_lora.errors import PosteriorFileError
from bayes_lora.files import is_sealed, read_json, sha256_of, write_sealed

SCHEMA_VERSION = 1
POSTERIOR_FILE = "posterior.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"  # these two are PEFT's
ADAPTER_CONFIG_FILE = "adapter_config.json"
DESCRIPTION_FILE = "bayes_lora.json"
CARD_FILE = "README.md"  # for people: it may be edited, and nothing is read from it
SAMPLE_SCALE = "sample_scale"  # its name in the posterior file

_DESCRIBED = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, POSTERIOR_FILE)
LOADED = (*_DESCRIBED, DESCRIPTION_FILE)
_KEYS = {"schema_version", "config", "adapters", "base_fingerprint", "files", "sha256"}
_REMEDY = "Save the posterior again, or copy or download it again."


def write_description(folder: Path, config: Mapping[str, Any], adapters: Sequence[str], base_fingerprint: str) -> None:
    """Write `bayes_lora.json`, last: size and checksum of each other file, and a checksum of what it says itself."""
    paths = {name: folder / name for name in _DESCRIBED}
    description = {
        "schema_version": SCHEMA_VERSION,
        "config": dict(config),
        "adapters": list(adapters),
        "base_fingerprint": base_fingerprint,
        "files": {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()},
    }
    write_sealed(folder / DESCRIPTION_FILE, description)


def read_whole(folder: Path) -> dict[str, Any]:
    """What `write_description` wrote, once every file in the folder is what it says.

    Raises:
        PosteriorFileError: a file is missing, damaged or edited, or of another schema version; names the file.
    """
    description = _read_description(folder)
    # PEFT would look for a missing file on the hub.
    for name in _DESCRIBED:
        if not (folder / name).is_file():
            raise PosteriorFileError(f"{folder / name} is missing: {folder} is not whole. {_REMEDY}")
    for name in _DESCRIBED:
        path, written = folder / name, description["files"].get(name, {})
        size = path.stat().st_size
        if size != written.get("bytes"):
            raise PosteriorFileError(
                f"{path} has {size:,} bytes where {DESCRIPTION_FILE} says {written.get('bytes')}: it was cut short, "
                f"damaged or edited. {_REMEDY}"
            )
        if sha256_of(path) != written.get("sha256"):
            raise PosteriorFileError(
                f"{path} does not have the checksum in {DESCRIPTION_FILE}: it was damaged or edited. {_REMEDY}"
            )
    return description


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION_FILE
    try:
        description = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PosteriorFileError(f"{path} is missing: {folder} is not a folder that save_posterior wrote.") from error
    except ValueError as error:
        raise PosteriorFileError(f"{path} cannot be read as JSON ({error}): it was damaged. {_REMEDY}") from error
    except OSError as error:
        raise PosteriorFileError(f"{path} cannot be read: {error}. Check its permissions.") from error
    version = description.get("schema_version") if isinstance(description, dict) else None
    # Before the checksum, which another version may take otherwise.
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise PosteriorFileError(
            f"{path} has schema version {version}, this library reads {SCHEMA_VERSION}. "
            "Install the newest bayes-lora: pip install --upgrade bayes-lora."
        )
    if not isinstance(description, dict) or not set(description) >= _KEYS:
        raise PosteriorFileError(f"{path} lacks some of {sorted(_KEYS)}: it was damaged or edited. {_REMEDY}")
    if not is_sealed(description):
        raise PosteriorFileError(
            f"{path} does not have the checksum it was written with: it was damaged or edited. {_REMEDY}"
        )
    return description
