"""MkDocs hook: puts the tables of methods into a page, made from what the methods say of themselves."""

from collections.abc import Sequence
from typing import Any

from bayes_lora.experiments.compare.method_spec import SUFFIXES
from bayes_lora.experiments.compare.methods import METHODS


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs calls this for every page; a marker becomes its table."""
    for marker, table in (("<!-- methods -->", methods_table), ("<!-- method options -->", options_table)):
        if marker in markdown:
            markdown = markdown.replace(marker, table())
    return markdown


def methods_table() -> str:
    """A row for each method, and for each suffix."""
    rows = [(f"`{spec.name}`", spec.python, spec.summary, spec.passes) for spec in METHODS.values()]
    rows += [
        (f"`+{suffix.name}` after {suffix.after} name", suffix.python, suffix.summary, suffix.passes)
        for suffix in SUFFIXES.values()
    ]
    cells = [(name, f"`{python}`", summary, passes) for name, python, summary, passes in rows]
    return _table(("name", "in Python", "what is trained", "forward passes a batch"), cells)


def options_table() -> str:
    """A row for methods that have the same options; those without any are left out."""
    named: dict[str, list[str]] = {}
    for spec in METHODS.values():
        if spec.options:
            said = "; ".join(f"`{option.name}`: {option.default_text}" for option in spec.options)
            named.setdefault(said, []).append(f"`{spec.name}`")
    rows = [(", ".join(names), said) for said, names in named.items()]
    return _table(("method", "options, and their defaults"), rows)


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
