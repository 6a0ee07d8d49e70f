"""The built wheel, not the checkout: it holds every file of the four rooms, and it imports with none of them near."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from bayes_lora import __version__

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"bayes_lora": "bayes_lora", **{name: f"bayes_lora/{name}" for name in ("models", "inference", "experiments")}}
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")

IMPORT_ALL = """
import importlib, json, sys
modules = [importlib.import_module(name) for name in json.loads(sys.argv[1])]
ours = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "bayes_lora"}
print(json.dumps({"files": ours, "path": sys.path}))
"""


def pip(*arguments: str | Path) -> None:
    """Run pip with no network; what it says is shown where it fails."""
    command = [
        sys.executable,
        "-m",
        "pip",
        *map(str, arguments),
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout


def shipped_files() -> set[str]:
    """Where each file of the rooms belongs in the wheel. Links are skipped: their targets are rooms of their own."""
    found = set()
    for folder, package in ROOMS.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            linked = folder == "bayes_lora" and inside.parts[0] in ROOMS
            hidden = any(part == "__pycache__" or part.startswith(".") for part in inside.parts)
            if path.is_file() and not linked and not hidden and path.suffix not in {".md", ".pyc"}:
                found.add(f"{package}/{inside.as_posix()}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left behind in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ROOMS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=IGNORED)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder / "dist", source)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_rooms(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    packed = {name for name in names if ".dist-info/" not in name}
    expected = shipped_files()
    assert {"bayes_lora/py.typed", "bayes_lora/experiments/__init__.py"} <= expected
    assert sorted(expected - packed) == [], "missing: add it to `packages` or `package-data` in pyproject.toml"
    assert sorted(packed - expected) == []
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_has_the_version_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    assert metadata["Version"] == __version__
    assert wheel.name.startswith(f"bayes_lora-{__version__}-")


def test_wheel_imports_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    pip("install", "--target", target, wheel)
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, json.dumps(settings["packages"])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])

    # An editable installation would serve from the checkout what the wheel lacks: look at where each module came from.
    assert set(settings["packages"]) <= set(report["files"])
    strangers = {name: file for name, file in report["files"].items() if not Path(file).is_relative_to(target)}
    assert strangers == {}
    checkout = {ROOT, *(ROOT / name for name in ROOMS)}
    assert checkout.isdisjoint(Path(entry).resolve() for entry in report["path"])
