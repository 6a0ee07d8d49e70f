"""The files of a saved posterior, and how they are known to be whole."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bayes_lora.errors import PosteriorFileError
from bayes_lora.files import sha256_of
from bayes_lora.inference.guides.lora_guide import LoRAGuide, guide_kinds
from bayes_lora.models import Likelihood
from bayes_lora.models.likelihoods.kinds import likelihood_kinds
from bayes_lora.sealed_files import Format, write_sealed

_T = TypeVar("_T")
POSTERIOR_FILE = "posterior.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"  # these two are PEFT's
ADAPTER_CONFIG_FILE = "adapter_config.json"
DESCRIPTION_FILE = "bayes_lora.json"
FIRST_ADAPTER = "default"  # PEFT's name for the one that is not in a folder of its own
CARD_FILE = "README.md"  # for people: it may be edited, and nothing is read from it
SAMPLE_SCALE, LIKELIHOOD = "sample_scale", "likelihood."  # in the posterior file: a name, and how names begin

_OF_ADAPTER = (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
# What any posterior on the hub may have; which files one has is said by `posterior_names`.
LOADED = (*_OF_ADAPTER, *(f"*/{name}" for name in _OF_ADAPTER), POSTERIOR_FILE, DESCRIPTION_FILE)
_KEYS = {"config", "adapters", "base_fingerprint", "files"}
# Version 1 knew one kind of guide and one of likelihood, which its files need not name, and called kl_temperature
# temperature. What it can read is still of that version.
_FORMAT = Format(PosteriorFileError, "Save the posterior again, or copy or download it again.", newest=2)


@dataclass(frozen=True)
class SavedKind:
    """Which guide a saved posterior has, or which likelihood.

    Attributes:
        kind: see `LoRAGuide.kind` and `Likelihood.kind`.
        settings: see `LoRAGuide.settings` and `Likelihood.settings`.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_FIRST_GUIDE, _FIRST_LIKELIHOOD = SavedKind("monteclora"), SavedKind("classification")


def write_description(
    folder: Path,
    config: Mapping[str, Any],
    adapters: Sequence[str],
    base_fingerprint: str,
    guide: SavedKind,
    likelihood: SavedKind = _FIRST_LIKELIHOOD,
    peft_adapters: Sequence[str] = (FIRST_ADAPTER,),
) -> None:
    """Write `bayes_lora.json`, last: size and checksum of each other file, and a checksum of what it says itself."""
    several = {} if list(peft_adapters) == [FIRST_ADAPTER] else {"peft_adapters": list(peft_adapters)}
    paths = {name: folder / name for name in _described(peft_adapters)}
    is_first = (guide, likelihood) == (_FIRST_GUIDE, _FIRST_LIKELIHOOD) and not several
    description = {
        "schema_version": 1 if is_first and config.get("kl_temperature") is None else 2,
        "guide": asdict(guide),
        "likelihood": asdict(likelihood),
        "config": {name: value for name, value in config.items() if value is not None},
        "adapters": list(adapters),
        **several,
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
    described = _described(saved_adapters(description))
    # PEFT would look for a missing file on the hub.
    for name in described:
        if not (folder / name).is_file():
            raise PosteriorFileError(f"{folder / name} is missing: {folder} is not whole. {_FORMAT.remedy}")
    for name in described:
        path, written = folder / name, description["files"].get(name, {})
        size = path.stat().st_size
        if size != written.get("bytes"):
            raise PosteriorFileError(
                f"{path} has {size:,} bytes where {DESCRIPTION_FILE} says {written.get('bytes')}: it was cut short, "
                f"damaged or edited. {_FORMAT.remedy}"
            )
        _FORMAT.require_checksum(path, sha256_of(path), written.get("sha256"), DESCRIPTION_FILE)
    return description


def saved_adapters(description: Mapping[str, Any]) -> list[str]:
    """Names of the PEFT adapters that a posterior is of, in the order in which they are active.

    Raises:
        PosteriorFileError: they are no names of folders beside the description.
    """
    names = description.get("peft_adapters", [FIRST_ADAPTER])
    if not isinstance(names, list) or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise PosteriorFileError(
            f"{DESCRIPTION_FILE} does not say of which adapters it is: {names!r}. {_FORMAT.remedy}"
        )
    return names


def posterior_names(description: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that make a posterior, as paths in its folder; besides them there is the card."""
    return (*_described(saved_adapters(description)), DESCRIPTION_FILE)


def _described(adapters: Sequence[str]) -> tuple[str, ...]:
    folders = ["" if adapter == FIRST_ADAPTER else f"{adapter}/" for adapter in adapters]
    return (*(folder + name for folder in folders for name in _OF_ADAPTER), POSTERIOR_FILE)


def saved_guide(path: Path, description: Mapping[str, Any]) -> tuple[type[LoRAGuide], dict[str, Any]]:
    """The class of the guide that a description is of, and its settings.

    Args:
        path: the file that the description was read from.
        description: as `read_whole` gives it.

    Raises:
        PosteriorFileError: no class of that kind is known, or what it says of the guide is nothing to go by.
    """
    return _saved(path, description, "guide", _FIRST_GUIDE, guide_kinds())


def saved_likelihood(path: Path, description: Mapping[str, Any]) -> tuple[type[Likelihood], dict[str, Any]]:
    """The same of the likelihood."""
    return _saved(path, description, "likelihood", _FIRST_LIKELIHOOD, likelihood_kinds())


def _saved(
    path: Path, description: Mapping[str, Any], what: str, first: SavedKind, kinds: Mapping[str, type[_T]]
) -> tuple[type[_T], dict[str, Any]]:
    found = description.get(what, asdict(first))
    kind, settings = (found.get("kind"), found.get("settings")) if isinstance(found, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(settings, dict):
        raise PosteriorFileError(f"{path} does not say what {what} it is of: {found!r}. {_FORMAT.remedy}")
    if kind not in kinds:
        raise PosteriorFileError(
            f"{path}: its {what} is of kind {kind!r}, and the kinds known here are {', '.join(kinds)}. Import the "
            "module that defines it, or install the newest bayes-lora: pip install --upgrade bayes-lora."
        )
    return kinds[kind], settings
