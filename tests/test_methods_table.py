"""The tables of methods that the docs build puts into docs/methods.md hold every method, and what it says of itself."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bayes_lora.experiments.compare.method_spec import SUFFIXES
from bayes_lora.experiments.compare.methods import METHODS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


@pytest.fixture
def hook() -> Iterator[ModuleType]:
    """The hook, loaded as MkDocs loads it: by its file."""
    spec = importlib.util.spec_from_file_location("methods_table", ROOT / "docs" / "hooks" / "methods_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods_table"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["methods_table"]


def cells(table: str, first: str) -> list[str]:
    """Of the row that starts with a name."""
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def test_the_page_gets_a_row_for_every_method_and_suffix(hook: ModuleType) -> None:
    page = hook.on_page_markdown(PAGE, page=None, config=None, files=None)
    assert "<!-- method" in PAGE
    assert "<!-- method" not in page
    table = hook.methods_table()
    assert table in page
    assert hook.options_table() in page
    for spec in METHODS.values():
        assert cells(table, f"`{spec.name}`") == [f"`{spec.name}`", f"`{spec.python}`", spec.summary, spec.passes]
    for suffix in SUFFIXES.values():
        assert cells(table, f"`+{suffix.name}` after {suffix.after} name")[1:] == [
            f"`{suffix.python}`",
            suffix.summary,
            suffix.passes,
        ]


def test_options_stand_there_with_their_defaults(hook: ModuleType) -> None:
    """Methods that have the same ones share a row."""
    rows = hook.options_table().splitlines()[2:]
    for spec in METHODS.values():
        own = [row for row in rows if f"`{spec.name}`" in row.split(" | ")[0]]
        assert len(own) == bool(spec.options)
        for option in spec.options:
            assert f"`{option.name}`: {option.default_text}" in own[0]
    assert any("`monteclora`, `monteclora_sparse`" in row for row in rows)


def test_other_pages_stay(hook: ModuleType) -> None:
    assert hook.on_page_markdown("# A page", page=None, config=None, files=None) == "# A page"


def test_a_method_that_is_left_out_is_seen(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "METHODS", {name: spec for name, spec in METHODS.items() if name != "swag"})
    with pytest.raises(ValueError, match="not enough values"):
        cells(hook.methods_table(), "`swag`")
