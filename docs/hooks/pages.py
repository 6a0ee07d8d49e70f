"""MkDocs' hook: the pages that are made from the code, the notebooks and the README, and the links of all pages."""

import base64
import importlib
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
HOOKS = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # MkDocs takes it away again when this module has been read

from docs.hooks import links, notebooks, reference  # noqa: E402 - of the folder that was just named

# A module beside this one that fills in a page, where there is one.
_METHODS: ModuleType | None = (
    importlib.import_module("docs.hooks.methods_table") if (HOOKS / "methods_table.py").exists() else None
)
_HOME = "index.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the menu; a public name without a docstring has none, and fails."""
    if bare := reference.undocumented():
        raise PluginError(f"no docstring: {', '.join(bare)}")
    menu: dict[str, list[Any]] = {}
    for section, path, _ in reference.pages():
        menu.setdefault(section, []).append(path)
    found = [*menu.pop(""), *({section: paths} for section, paths in menu.items())]
    lists = {title: items for entry in config.nav or [] for title, items in entry.items()}
    lists["Reference"].extend(found)
    lists["Tutorials"].extend(path for path, _, _ in notebooks.tutorials())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the README as the first one."""
    home = links.for_the_site((ROOT / "README.md").read_text(encoding="utf-8"), PurePosixPath("README.md"))
    files.append(File.generated(config, _HOME, content=home))
    for _, path, text in reference.pages():
        files.append(File.generated(config, path, content=text))
    for path, text, pictures in notebooks.tutorials():
        files.append(File.generated(config, path, content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=base64.b64decode(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated within a page, and turn links to other files of the repository into addresses."""
    if _METHODS is not None:
        markdown = _METHODS.on_page_markdown(markdown, page=page, config=config, files=files)
    try:
        return links.for_the_site(markdown, PurePosixPath("docs", page.file.src_uri))
    except links.DeadLinkError as error:
        raise PluginError(str(error)) from error
