"""A self-contained HTML page: pictures and styles inside, nothing fetched."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from bayes_lora.files import write_file


@dataclass(frozen=True)
class Picture:
    """A figure with the words that go with it.

    Attributes:
        name: of its PNG file, without suffix.
        figure: what to draw.
        alt: what a reader who cannot see it should know.
        caption: what it shows and how to read it.
    """

    name: str
    figure: Figure
    alt: str
    caption: str


@dataclass(frozen=True)
class TableData:
    """A table: its header, its rows, and what it shows; of words, which start at the left, or of numbers."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    of_words: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report: a heading, paragraphs, then tables and pictures."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[TableData, ...] = ()
    pictures: tuple[Picture, ...] = ()


def write_report(folder: Path, title: str, sections: list[Section]) -> Path:
    """Write `report.html` and each picture as PNG beside it; returns the page's path."""
    images: dict[str, str] = {}
    for section in sections:
        for picture in section.pictures:
            data = png(picture.figure)
            write_file(folder / f"{picture.name}.png", data)
            images[picture.name] = base64.b64encode(data).decode()
    page: dict[str, Any] = {"title": title, "sections": sections, "images": images}
    path = folder / "report.html"
    write_file(path, rendered("report.html", page))
    return path


def rendered(template: str, page: dict[str, Any]) -> bytes:
    """A page of one of the templates; what goes into it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bayes_lora.experiments.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(page).encode()


def png(figure: Figure) -> bytes:
    """The picture as a PNG file, the same bytes at every call."""
    buffer = io.BytesIO()
    # No software version inside: the same figure gives the same file.
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()
