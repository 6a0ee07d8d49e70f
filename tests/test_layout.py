"""The floor plan: packages = folders, links = mapping, and imports that run down the floors of CONTRIBUTING only."""

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = {  # folder -> import name, lowest first
    "bayes_lora": "bayes_lora",
    "models": "bayes_lora.models",
    "inference": "bayes_lora.inference",
    "experiments": "bayes_lora.experiments",
}
MAX_LINES, MAX_LOOSE_FILES = 400, 6
BANNED_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}


def floor_plan() -> dict[str, set[str]]:
    """For each room, by its folder, the rooms whose modules it may import: the map in CONTRIBUTING.md."""
    rows = re.findall(r"^\| `([a-z_/]+)/` \| (.+?) \| .+ \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    plan: dict[str, set[str]] = {}
    for room, allowed in rows:
        named = re.findall(r"`([a-z_/]+)/`", allowed)
        seen = list(plan)
        if allowed.startswith("all to"):
            seen = seen[: seen.index(named[0]) + 1]
        plan[room] = set(seen if allowed.startswith("all") else named)
    return plan


PLAN = floor_plan()


def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def folders(top: str) -> Iterator[Path]:
    """The folders below one of the root folders that hold Python files; links are not followed."""
    for folder, _, files in os.walk(ROOT / top):
        if any(name.endswith(".py") for name in files):
            yield Path(folder)


def python_files(*tops: str) -> list[Path]:
    return sorted(path for top in tops for folder in folders(top) for path in folder.glob("*.py"))


def module_name(path: Path) -> str:
    """The import name of a file or folder below a room."""
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([TOPS[top], *(part for part in rest if part != "__init__")])


PACKAGES = {module_name(folder): str(folder.relative_to(ROOT)) for top in TOPS for folder in folders(top)}


def room_of(module: str) -> str | None:
    """The room, by its folder, that an imported name lies in; None where it is not ours."""
    parts = module.split(".")
    while parts and ".".join(parts) not in PACKAGES:
        parts.pop()
    return PACKAGES.get(".".join(parts))


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
        elif name.split(".")[0] in TOPS and name.split(".")[0] != "bayes_lora":
            found.append(f"line {line}: {name} must be imported as bayes_lora.{name}")
        elif target is not None and target != room and target not in PLAN[room]:
            found.append(f"line {line}: {room} imports {name} from {target}, which its floor does not see")
    return found


def test_packages_are_the_folders() -> None:
    declared = setuptools_table()["packages"]
    found = {module_name(folder) for top in TOPS for folder in folders(top)}
    assert len(declared) == len(set(declared))
    assert set(declared) == found, "a package missing from `packages` in pyproject.toml vanishes from the wheel"


def test_every_folder_of_modules_is_a_package() -> None:
    bare = [str(f.relative_to(ROOT)) for top in TOPS for f in folders(top) if not (f / "__init__.py").is_file()]
    assert bare == []


def test_links_are_the_mapping() -> None:
    mapping = setuptools_table()["package-dir"]
    assert mapping == {name: folder for folder, name in TOPS.items() if folder != name}
    links = {path.name: os.readlink(path) for path in (ROOT / "bayes_lora").iterdir() if path.is_symlink()}
    assert links == {folder: f"../{folder}" for folder in mapping.values()}


def test_the_map_names_every_room() -> None:
    assert sorted(PLAN) == sorted(PACKAGES.values())


def test_no_arrow_of_the_map_points_up() -> None:
    floors = list(PLAN)
    assert {
        (room, other) for room in PLAN for other in PLAN[room] if floors.index(other) >= floors.index(room)
    } == set()


@pytest.mark.parametrize("room", PLAN)
def test_arrows_between_rooms(room: str) -> None:
    files = sorted((ROOT / room).glob("*.py"))
    assert files
    found = [f"{path.relative_to(ROOT)}, {text}" for path in files for text in violations(path.read_text(), room)]
    assert found == []


@pytest.mark.parametrize("top", ["inference", "experiments"])
def test_few_files_lie_loose(top: str) -> None:
    assert len([path for path in (ROOT / top).iterdir() if path.is_file()]) <= MAX_LOOSE_FILES


def test_tests_mirror_the_rooms() -> None:
    tests = ROOT / "tests"
    places = {str(path.parent.relative_to(tests)) for path in tests.rglob("test_*.py")}
    assert places - {"."} <= set(PLAN)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("bayes_lora", "import bayes_lora.models"),
        ("bayes_lora", "from bayes_lora.distributions.wishart import Wishart"),
        ("bayes_lora/metrics", "from bayes_lora.distributions.wishart import Wishart"),
        ("models", "from bayes_lora.inference.guides.monteclora import MonteCLoRAGuide"),
        ("models", "from bayes_lora import inference"),
        ("models/likelihoods", "from bayes_lora.models.bayesian_lora import BayesianLoRA"),
        ("inference/guides", "from bayes_lora.inference.storage import posteriors"),
        ("inference/guides", "from bayes_lora.inference import fit"),
        ("inference/predictors", "from bayes_lora.inference.training.fit import fit"),
        ("inference", "from bayes_lora import errors, experiments as lab"),
        ("models", "def f():\n    from bayes_lora.inference import fit\n    return fit"),
        ("bayes_lora", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bayes_lora.models import x"),
        ("models", "import importlib\nimportlib.import_module('bayes_lora.experiments.command_line.main')"),
        ("experiments/tasks", "from bayes_lora.experiments.runs.runs import Run"),
        ("experiments/runs", "from bayes_lora.experiments.compare.study import Study"),
        ("experiments/demo", "from bayes_lora.experiments.compare.study import Study"),
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
        (
            "experiments/runs",
            "import bayes_lora.inference\nfrom bayes_lora.models import x\nfrom bayes_lora import errors",
        ),
        ("inference/training", "from bayes_lora.inference.guides.monteclora import MonteCLoRAGuide"),
        ("bayes_lora", "import torch.distributions\nfrom sklearn.experimental import models"),
        ("bayes_lora", "text = 'import bayes_lora.models'"),
    ],
)
def test_arrow_checker_passes_what_is_allowed(room: str, source: str) -> None:
    assert violations(source, room) == []


def test_no_file_is_too_long() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in python_files(*TOPS, "tests")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_drawer_for_everything() -> None:
    paths = [*python_files(*TOPS, "tests"), *(folder for top in TOPS for folder in folders(top))]
    assert [str(p.relative_to(ROOT)) for p in paths if p.stem.lstrip("_") in BANNED_NAMES] == []


def test_public_modules_have_docstrings() -> None:
    public = [p for p in python_files(*TOPS) if p.name == "__init__.py" or not p.name.startswith("_")]
    assert public
    assert [str(p.relative_to(ROOT)) for p in public if not ast.get_docstring(ast.parse(p.read_text()))] == []
