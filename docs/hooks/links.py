"""Links of a page, as the site needs them: to other pages as they are, to other files of the repository by address.

On the site hosting the code a relative link works in both cases; the site has only what is in docs/. The README is
also shown on package indexes, where no relative link works: all of its links are addresses, and those of pages and
pictures of the site become relative ones.
"""

import os
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/bayes-lora/bayes_lora"
FILES = f"{REPOSITORY}/blob/main/"
PICTURES = "https://raw.githubusercontent.com/bayes-lora/bayes_lora/main/"
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_CODE = re.compile(r"(^```.*?^```$|^(?: {4}[^\n]*\n?)+|`[^`\n]+`)", flags=re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"^<!-- .* -->\n", flags=re.MULTILINE)


class DeadLinkError(ValueError):
    """A link to a file of the repository that is not there."""


def prose(markdown: str) -> list[str]:
    """A page in parts, code and the rest in turn: those at even places are not code."""
    return _CODE.split(markdown)


def links(markdown: str) -> list[str]:
    """Where the links and pictures of a page lead."""
    return [link for part in prose(markdown)[::2] for link in _LINK.findall(part)]


def target(link: str, page: PurePosixPath) -> PurePosixPath | None:
    """The file that a link means, from the root of the repository; None where it leads elsewhere or into its page.

    Args:
        link: as it stands in the page.
        page: the page's own path, from the root of the repository.
    """
    for start in (FILES, PICTURES):
        if link.startswith(start):
            return PurePosixPath(link.removeprefix(start).partition("#")[0])
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:", path):
        return None
    return PurePosixPath(os.path.normpath(page.parent / path))


def _on_the_site(file: PurePosixPath, page: PurePosixPath) -> PurePosixPath:
    """The page that is made from a file, the first one or a tutorial; a tutorial itself links to its source."""
    if file == PurePosixPath("README.md"):
        return PurePosixPath("docs/index.md")
    if file.suffix == ".ipynb" and not page.is_relative_to("docs/tutorials"):
        return PurePosixPath("docs/tutorials", f"{file.stem}.md")
    return file


def for_the_site(markdown: str, page: PurePosixPath) -> str:
    """The page with the links of the site, and without the comments that tests read.

    Raises:
        DeadLinkError: a link leads to a file outside of docs/ that is not there. Those within are MkDocs' affair.
    """

    def renewed(found: re.Match[str]) -> str:
        file, mark = target(found[0], page), found[0].partition("#")[2]
        if file is None:
            return found[0]
        mark, file = f"#{mark}" if mark else "", _on_the_site(file, page)
        if file.is_relative_to("docs"):
            return os.path.relpath(file, page.parent if page.is_relative_to("docs") else "docs") + mark
        if not (ROOT / file).exists():
            raise DeadLinkError(f"{page}: {found[0]} leads to {file}, which is not there")
        return f"{FILES}{file}{mark}"

    parts = prose(_COMMENT.sub("", markdown))
    parts[::2] = [_LINK.sub(renewed, part) for part in parts[::2]]
    return "".join(parts)
