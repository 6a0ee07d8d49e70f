"""Tutorials: the committed notebooks as pages, with the outputs that they were committed with.

Nothing is executed here: the tests run every notebook, and hold that it is committed as it ran.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"
ORDER = ("pyro_svi_loop", "posterior_predictive", "method_comparison")  # from the first steps on
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colours of a terminal


def notebook_page(path: Path) -> tuple[str, dict[str, str]]:
    """A notebook as Markdown, and its pictures, base64 of PNG, by the file name that the page gives them."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    parts: list[str] = []
    pictures: dict[str, str] = {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{number}.png"
                pictures[name] = data["image/png"]
                parts.append(f"![What this cell draws]({name})")
            elif "text/html" in data:
                parts.append(_table_only(data["text/html"]))
            else:
                parts.append(_as_text(output.get("text") or data.get("text/plain", "")))
    source = f"*This page is [{path.name}](../../experiments/notebooks/{path.name}), with the outputs of its last run.*"
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([title, source, rest.strip(), *parts[1:], ""]), pictures


def _as_text(text: str) -> str:
    plain = _ESCAPES.sub("", text).rstrip()
    return f'<div class="output" markdown>\n\n```text\n{plain}\n```\n\n</div>' if plain else ""


def _table_only(html: str) -> str:
    """The table of a data frame, without the style sheet that pandas puts beside it."""
    table = re.search(r"<table.*?</table>", html, flags=re.DOTALL)
    if table is None:
        raise ValueError(f"a notebook's HTML output is no table: {html[:80]}")
    return re.sub(r' (border|class|style)="[^"]*"', "", table[0])


def tutorials() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Path, Markdown and pictures of each tutorial, the first to read first."""
    known = {path.stem: path for path in FOLDER.glob("*.ipynb")}
    for stem in (*ORDER, *sorted(known.keys() - set(ORDER))):
        page, pictures = notebook_page(known[stem])
        yield f"tutorials/{stem}.md", page, pictures
