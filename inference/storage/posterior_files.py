"""The files of a saved posterior, and how they are known to be whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayes_lora.errors import PosteriorFileError
from bayes_lora.files import sha256_of
from bayes_lora.inference.guides.lora_guide import LoRAGuide, guide_kinds
from bayes_lora.sealed_files import Format, write_sealed

POSTERIOR_FILE = "posterior.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"  # these two are PEFT's
ADAPTER_CONFIG_FILE = "adapter_config.json"
DESCRIPTION_FILE = "bayes_lora.json"
CARD_FILE = "README.md"  # for people: it may be edited, and nothing is read from it
SAMPLE_SCALE = "sample_scale"  # its name in the posterior file

_DESCRIBED = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, POSTERIOR_FILE)
LOADED = (*_DESCRIBED, DESCRIPTION_FILE)
_KEYS = {"config", "adapters", "base_fingerprint", "files"}
# Version 1 knew one kind of guide, which its files do not name, and whose files are of that version still.
_FORMAT = Format(PosteriorFileError, "Save the posterior again, or copy or download it again.", newest=2)
_FIRST_KIND = "monteclora"


@dataclass(frozen=True)
class SavedGuide:
    """Which guide a saved posterior is of.

    Attributes:
        kind: see `LoRAGuide.kind`.
        settings: see `LoRAGuide.settings`.
    """

    kind: str = _FIRST_KIND
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_description(
    folder: Path, config: Mapping[str, Any], adapters: Sequence[str], base_fingerprint: str, guide: SavedGuide
) -> None:
    """Write `bayes_lora.json`, last: size and checksum of each other file, and a checksum of what it says itself."""
    paths = {name: folder / name for name in _DESCRIBED}
    description = {
        "schema_version": 1 if guide.kind == _FIRST_KIND else 2,
        "guide": {"kind": guide.kind, "settings": dict(guide.settings)},
        "config": dict(config),
        "adapters": list(adapters),
        "base_fingerprint": base_fingerprint,
        "files": {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()},
    }
    write_sealed(folder / DESCRIPTION_FILE, description)


def read_whole(folder: Path) -> dict[str, Any]:
    """What `write_description` wrote, once every file in the folder is what it says.

    Raises:
        PosteriorFileError: a file is missing, damaged or edited, or of a newer schema version; names the file.
    """
    description = _FORMAT.read_description(
        folder / DESCRIPTION_FILE, _KEYS, f"{folder} is not a folder that save_posterior wrote."
    )
    # PEFT would look for a missing file on the hub.
    for name in _DESCRIBED:
        if not (folder / name).is_file():
            raise PosteriorFileError(f"{folder / name} is missing: {folder} is not whole. {_FORMAT.remedy}")
    for name in _DESCRIBED:
        path, written = folder / name, description["files"].get(name, {})
        size = path.stat().st_size
        if size != written.get("bytes"):
            raise PosteriorFileError(
                f"{path} has {size:,} bytes where {DESCRIPTION_FILE} says {written.get('bytes')}: it was cut short, "
                f"damaged or edited. {_FORMAT.remedy}"
            )
        _FORMAT.require_checksum(path, sha256_of(path), written.get("sha256"), DESCRIPTION_FILE)
    return description


def saved_guide(path: Path, description: Mapping[str, Any]) -> tuple[type[LoRAGuide], dict[str, Any]]:
    """The class of the guide that a description is of, and its settings.

    Args:
        path: the file that the description was read from.
        description: as `read_whole` gives it.

    Raises:
        PosteriorFileError: no class of that kind is known, or what it says of the guide is nothing to go by.
    """
    found = description.get("guide", {"kind": _FIRST_KIND, "settings": {}})
    kind, settings = (found.get("kind"), found.get("settings")) if isinstance(found, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(settings, dict):
        raise PosteriorFileError(f"{path} does not say what guide it is of: {found!r}. {_FORMAT.remedy}")
    kinds = guide_kinds()
    if kind not in kinds:
        raise PosteriorFileError(
            f"{path}: its guide is of kind {kind!r}, and the kinds known here are {', '.join(kinds)}. Import the "
            "module that defines it, or install the newest bayes-lora: pip install --upgrade bayes-lora."
        )
    return kinds[kind], settings
