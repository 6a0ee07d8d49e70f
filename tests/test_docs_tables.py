"""Tables in README and docs that are taken from committed results hold the numbers of these."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# <!-- from FILE#Section -->, then a table: some rows and columns of the one in that section of that file.
QUOTED = re.compile(r"<!-- from ([^\s#]+)(?:#(.+?))? -->\n((?:\|.*\n)+)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUOTES = [
    pytest.param(page, *found, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, found in enumerate(QUOTED.findall(page.read_text(encoding="utf-8")))
]

Table = dict[str, dict[str, str]]  # by what stands first in a row, and by column


def read_table(lines: str) -> Table:
    """What a Markdown table says, without the emphasis. A row may have a name of its own, with that of the file in a
    comment beside it."""
    plain = [
        [cell.replace("*", "").strip(" `") for cell in line.strip("| ").split(" |")]
        for line in lines.strip().splitlines()
    ]
    (_, *columns), _, *rows = plain
    rows = [[name.partition("<!-- ")[2].removesuffix("-->").strip() or name, *cells] for name, *cells in rows]
    assert all(len(cells) == len(columns) for _, *cells in rows)
    assert len({name for name, *_ in rows}) == len(rows)
    return {name: dict(zip(columns, cells, strict=True)) for name, *cells in rows}


def section(text: str, title: str) -> str:
    """The first table below the heading that starts with `title`, or of the page."""
    below = text.partition(f"\n## {title}")[2] if title and not text.startswith(f"## {title}") else text
    found = re.search(r"(?:^\|.*\n)+", below, flags=re.MULTILINE)
    assert found is not None
    return found[0]


@pytest.mark.parametrize(("page", "file", "title", "lines"), QUOTES)
def test_a_table_says_what_its_file_says(page: Path, file: str, title: str, lines: str) -> None:
    known, quoted = read_table(section((page.parent / file).read_text(encoding="utf-8"), title)), read_table(lines)
    assert quoted
    for name, cells in quoted.items():
        assert name in known
        assert cells == {column: known[name][column] for column in cells}


def test_pages_quote_in_this_form() -> None:
    marked = {page.name: page.read_text(encoding="utf-8").count("<!-- from ") for page in PAGES}
    assert sum(marked.values()) == len(QUOTES) > 0


def test_another_number_is_seen() -> None:
    table = "| method | NLL |\n|---|---|\n| map | **0.5** |\n"
    assert read_table(table) == {"map": {"NLL": "0.5"}}
    assert read_table(table) != read_table(table.replace("0.5", "0.6"))
    assert read_table(table.replace("map", "LoRA <!-- map -->")) == read_table(table)
