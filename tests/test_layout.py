"""The four rooms: packages = folders, links = mapping, and imports that point one way only."""

import ast
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {  # folder -> import name, lowest room first
    "bayes_lora": "bayes_lora",
    "models": "bayes_lora.models",
    "inference": "bayes_lora.inference",
    "experiments": "bayes_lora.experiments",
}
RANKS = {name: rank for rank, name in enumerate(ROOMS)}
MAX_LINES = 400
BANNED_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}


def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def folders(room: str) -> Iterator[Path]:
    """The folders of a room that hold Python files. Links are not followed: a room is counted once."""
    for folder, _, files in os.walk(ROOT / room):
        if any(name.endswith(".py") for name in files):
            yield Path(folder)


def python_files(*tops: str) -> list[Path]:
    return sorted(path for top in tops for folder in folders(top) for path in folder.glob("*.py"))


def module_name(path: Path) -> str:
    """The import name of a file or folder below a room."""
    room, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([ROOMS[room], *(part for part in rest if part != "__init__")])


def room_of(module: str) -> str | None:
    """The room that an imported name belongs to; None where it is not ours."""
    first, *rest = module.split(".")
    if first != "bayes_lora":
        return None
    return rest[0] if rest and rest[0] in RANKS else "bayes_lora"


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, wherever it stands; a relative one begins with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from bayes_lora import models` names the room in the alias.
            origin = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def violations(source: str, room: str) -> list[str]:
    """What is wrong with the imports of a module that lives in `room`."""
    found = []
    for line, name in imported_names(ast.parse(source)):
        target = room_of(name)
        if name.startswith("."):
            found.append(f"line {line}: relative import {name}")
        elif name.split(".")[0] in RANKS and name.split(".")[0] != "bayes_lora":
            found.append(f"line {line}: {name} must be imported as bayes_lora.{name}")
        elif target is not None and RANKS[target] > RANKS[room]:
            found.append(f"line {line}: {room} imports {name} from the higher room {target}")
    return found


def test_packages_are_the_folders() -> None:
    declared = setuptools_table()["packages"]
    found = {module_name(folder) for room in ROOMS for folder in folders(room)}
    assert len(declared) == len(set(declared))
    assert set(declared) == found, "a package missing from `packages` in pyproject.toml vanishes from the wheel"


def test_every_folder_of_modules_is_a_package() -> None:
    bare = [str(f.relative_to(ROOT)) for room in ROOMS for f in folders(room) if not (f / "__init__.py").is_file()]
    assert bare == []


def test_links_are_the_mapping() -> None:
    mapping = setuptools_table()["package-dir"]
    assert mapping == {name: folder for folder, name in ROOMS.items() if folder != name}
    links = {path.name: os.readlink(path) for path in (ROOT / "bayes_lora").iterdir() if path.is_symlink()}
    assert links == {folder: f"../{folder}" for folder in mapping.values()}


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms(room: str) -> None:
    files = python_files(room)
    assert files
    found = [f"{path.relative_to(ROOT)}, {text}" for path in files for text in violations(path.read_text(), room)]
    assert found == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("bayes_lora", "import bayes_lora.models"),
        ("models", "from bayes_lora.inference.guide import MonteCLoRAGuide"),
        ("models", "from bayes_lora import inference"),
        ("inference", "from bayes_lora import errors, experiments as lab"),
        ("models", "def f():\n    from bayes_lora.inference import fit\n    return fit"),
        ("bayes_lora", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bayes_lora.models import x"),
        ("models", "import importlib\nimportlib.import_module('bayes_lora.experiments.cli')"),
        ("experiments", "from . import cli"),
        ("experiments", "from ..models import x"),
        ("inference", "import models"),
        ("inference", "from models.bayesian_lora import BayesianLoRA"),
    ],
)
def test_arrow_checker_finds_a_violation(room: str, source: str) -> None:
    assert len(violations(source, room)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("experiments", "import bayes_lora.inference\nfrom bayes_lora.models import x\nfrom bayes_lora import errors"),
        ("inference", "from bayes_lora.inference.guide import MonteCLoRAGuide"),
        ("bayes_lora", "import torch.distributions\nfrom sklearn.experimental import models"),
        ("bayes_lora", "text = 'import bayes_lora.models'"),
    ],
)
def test_arrow_checker_passes_what_is_allowed(room: str, source: str) -> None:
    assert violations(source, room) == []


def test_no_file_is_too_long() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in python_files(*ROOMS, "tests")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_drawer_for_everything() -> None:
    paths = [*python_files(*ROOMS, "tests"), *(folder for room in ROOMS for folder in folders(room))]
    assert [str(p.relative_to(ROOT)) for p in paths if p.stem.lstrip("_") in BANNED_NAMES] == []


def test_public_modules_have_docstrings() -> None:
    public = [p for p in python_files(*ROOMS) if p.name == "__init__.py" or not p.name.startswith("_")]
    assert public
    assert [str(p.relative_to(ROOT)) for p in public if not ast.get_docstring(ast.parse(p.read_text()))] == []
