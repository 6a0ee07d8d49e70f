"""The pinned sets of packages against the ranges of pyproject.toml."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[Requirement]:
    """What the project and its extras ask for."""
    extras = [entry for extra in PROJECT["optional-dependencies"].values() for entry in extra]
    found = [Requirement(entry) for entry in [*PROJECT["dependencies"], *extras]]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]  # an extra may name another


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in found}


def test_the_oldest_set_is_the_lower_bounds() -> None:
    pinned = pins("constraints-oldest.txt")
    bounds = {
        requirement.name: [bound.version for bound in requirement.specifier if bound.operator in {">=", "=="}]
        for requirement in requirements()
    }
    assert [name for name, bound in bounds.items() if len(bound) != 1] == [], "give each one lower bound"
    wrong = {
        name: f"pyproject.toml has {bound[0]}, constraints-oldest.txt {pinned.get(canonicalize_name(name))}"
        for name, bound in bounds.items()
        if pinned.get(canonicalize_name(name)) != Version(bound[0])
    }
    assert wrong == {}, "see Dependencies in CONTRIBUTING.md"


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_every_requirement_is_pinned_within_its_range(file: str) -> None:
    pinned = pins(file)
    outside = [
        str(requirement)
        for requirement in requirements()
        if (version := pinned.get(canonicalize_name(requirement.name))) is None or version not in requirement.specifier
    ]
    assert outside == []
