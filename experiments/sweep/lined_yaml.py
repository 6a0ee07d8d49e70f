"""YAML whose every key and value knows its line, so that an error can name it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from bayes_lora.errors import RecipeError

# YAML 1.1 takes 3e-4 for text, since it has no point.
_FLOAT = re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)")


class _Loader(yaml.SafeLoader):
    """The safe loader, which reads 3e-4 as a number."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


@dataclass(frozen=True)
class Lined:
    """A value with its place: a mapping of these by key, a list of these, or a scalar.

    Attributes:
        value: what it is.
        file: where it stands.
        line: counted from 1; of the entry of a mapping that of its key.
    """

    value: Any
    file: Path
    line: int

    def fault(self, what: str) -> NoReturn:
        """Raise the error that something is wrong here.

        Raises:
            RecipeError: always; it begins with file and line.
        """
        raise RecipeError(f"{self.file}, line {self.line}: {what}")

    def mapping(self, what: str) -> dict[str, "Lined"]:
        """The entries.

        Raises:
            RecipeError: it is no mapping.
        """
        if not isinstance(self.value, dict):
            self.fault(f"{what} must be a mapping, NAME: VALUE on lines of their own.")
        return self.value

    def items(self, what: str) -> list["Lined"]:
        """The entries of a list.

        Raises:
            RecipeError: it is no list, or has no entries.
        """
        if not isinstance(self.value, list) or not self.value:
            self.fault(f"{what} must be a list with at least one entry, such as [1, 2].")
        return self.value

    def text(self, what: str) -> str:
        """The value, which must be text.

        Raises:
            RecipeError: it is none.
        """
        if not isinstance(self.value, str) or not self.value.strip():
            self.fault(f"{what} must be text, not {self.plain()!r}.")
        return self.value.strip()

    def plain(self) -> Any:
        """The value without the places."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value


def read_lined(path: Path) -> Lined:
    """The content of a YAML file.

    Raises:
        RecipeError: it cannot be read, is no YAML, is empty, or has a key twice; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read ({error}). Give a recipe, a YAML file.") from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{path}, line 1: the recipe is empty. See docs/guides/sweep.md for one.")
        return _lined(loader, node, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise RecipeError(f"{path}, line {line}: this is no YAML ({error.problem or error.context}).") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: this is no YAML ({error}).") from error


def _lined(loader: Any, node: yaml.Node, path: Path) -> Lined:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        return Lined(dict(_entries(loader, node, path)), path, line)
    if isinstance(node, yaml.SequenceNode):
        return Lined([_lined(loader, entry, path) for entry in node.value], path, line)
    return Lined(loader.construct_object(node), path, line)


def _entries(loader: Any, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Lined]]:
    known: set[str] = set()
    for key, value in node.value:
        name, line = str(loader.construct_object(key)), key.start_mark.line + 1
        if name in known:
            raise RecipeError(f"{path}, line {line}: the key {name!r} is here for the second time. Keep one of them.")
        known.add(name)
        yield name, Lined(_lined(loader, value, path).value, path, line)
