"""Files that say what they are: a schema version and checksums, by which what was damaged or edited is refused."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bayes_lora.errors import BayesLoRAError
from bayes_lora.files import read_json, sha256_of, write_whole


def write_sealed(path: Path, description: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, that holds the checksum of what it says under "sha256"."""
    sealed = {**description, "sha256": _digest(description)}
    write_whole(path, (json.dumps(sealed, indent=2) + "\n").encode())


def write_sealed_tensors(path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write tensors in named parts as one safetensors file, whole or not at all, with a checksum of them."""
    named = {f"{part}/{name}": value.contiguous() for part, state in tensors.items() for name, value in state.items()}
    write_whole(path, save(named, metadata={"sha256": _tensors_digest(named)}))


@dataclass(frozen=True)
class Format:
    """How the files of one kind are read: every method raises `error`, naming the file, where one is not as written.

    Attributes:
        error: what is raised.
        remedy: what to do about it, a sentence.
        newest: schema version up to which this library reads them, from 1.
    """

    error: type[BayesLoRAError]
    remedy: str
    newest: int = 1

    def read_description(self, path: Path, keys: Collection[str], missing: str) -> dict[str, Any]:
        """What `write_sealed` wrote under these keys at least, of a version that is read here.

        Args:
            path: the file.
            keys: that it must have besides its checksum and version.
            missing: what it means that there is no such file, and what to do then.
        """
        try:
            description = read_json(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.error(f"{path} is missing: {missing}") from error
        except ValueError as error:
            raise self.error(f"{path} cannot be read as JSON ({error}): it was damaged. {self.remedy}") from error
        except OSError as error:
            raise self.error(f"{path} cannot be read: {error}. Check its permissions.") from error
        wanted = {"schema_version", "sha256", *keys}
        found = description if isinstance(description, dict) else {}
        # Before the checksum, which another version may take otherwise.
        self.require_version(path, found.get("schema_version", 1))
        if not set(found) >= wanted:
            raise self.error(f"{path} lacks some of {sorted(wanted)}: it was damaged or edited. {self.remedy}")
        unsealed = {name: value for name, value in found.items() if name != "sha256"}
        self.require_checksum(path, _digest(unsealed), found["sha256"])
        return found

    def require_version(self, path: Path, version: object) -> None:
        """The schema version that a file gives is one that is read here."""
        if isinstance(version, int) and not 1 <= version <= self.newest:
            read = "1" if self.newest == 1 else f"1 to {self.newest}"
            raise self.error(
                f"{path} has schema version {version}, this library reads {read}. "
                "Install the newest bayes-lora: pip install --upgrade bayes-lora."
            )

    def require_checksum(self, path: Path, found: str, expected: object, said_by: str | None = None) -> None:
        """A file's content has the checksum that is noted in another file, by its name, or in itself."""
        if found != expected:
            written = "it was written with" if said_by is None else f"in {said_by}"
            raise self.error(f"{path} does not have the checksum {written}: it was damaged or edited. {self.remedy}")

    def require_file(self, path: Path, expected: object, said_by: str) -> None:
        """A file is there, and has the checksum that another one says."""
        if not path.is_file() or sha256_of(path) != expected:
            raise self.error(f"{path} is missing or damaged: it does not have the checksum in {said_by}. {self.remedy}")

    def read_tensors(self, path: Path, missing: str) -> tuple[dict[str, str], dict[str, Tensor]]:
        """The metadata of a safetensors file, and its tensors.

        Args:
            path: the file.
            missing: what to do where there is no such file.
        """
        try:
            with safe_open(path, "pt") as file:
                return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise self.error(f"{path} is missing. {missing}") from error
        except (SafetensorError, OSError) as error:
            raise self.error(f"{path} cannot be read as a safetensors file ({error}). {self.remedy}") from error

    def read_sealed_tensors(self, path: Path, parts: Collection[str], by: str) -> dict[str, dict[str, Tensor]]:
        """What `write_sealed_tensors` wrote in these parts.

        Args:
            path: the file.
            parts: that it must have, and no others.
            by: what writes such files.
        """
        facts, tensors = self.read_tensors(path, f"Give the file that {by} wrote.")
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            found.setdefault(part, {})[rest] = value
        if "sha256" not in facts or found.keys() != set(parts):
            raise self.error(f"{path} is no file that {by} wrote, or it was damaged. {self.remedy}")
        self.require_checksum(path, _tensors_digest(tensors), facts["sha256"])
        return found


def _tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Of tensors and their names; safetensors lays them out in an order of its own."""
    return hashlib.sha256(save(tensors)).hexdigest()


def _digest(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
