"""The site, without building it: every public name and command has its page, every link leads somewhere."""

import re
from pathlib import Path, PurePosixPath

import pytest
import yaml

import bayes_lora
from bayes_lora.experiments.command_line.main import COMMANDS
from docs.hooks import links, notebooks, reference
from tests.experiments.commands import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [public for package in reference.PACKAGES for public in reference.public_names(package)]
REFERENCE = {path: text for _, path, text in reference.pages()}
TUTORIALS = {path: text for path, text, _ in notebooks.tutorials()}
PICTURES = {f"tutorials/{name}" for _, _, pictures in notebooks.tutorials() for name in pictures}
MADE = {*REFERENCE, *TUTORIALS, *PICTURES, "index.md"}  # below docs/, when the site is built


def broken(markdown: str, page: PurePosixPath) -> list[str]:
    """The links of a page that lead to no file, neither in the checkout nor made for the site."""
    targets = {link: links.target(link, page) for link in links.links(markdown)}
    return [
        link
        for link, file in targets.items()
        if file and not (ROOT / file).exists() and str(file).removeprefix("docs/") not in MADE
    ]


@pytest.mark.parametrize("public", NAMES, ids=lambda public: f"{public.package}.{public.name}")
def test_a_public_name_has_a_docstring_and_a_page(public: reference.PublicName) -> None:
    assert public.docstring, f"{public.package}.{public.name} has no docstring of its own"
    assert f"::: {public.origin}\n" in REFERENCE[public.page]


def test_a_name_without_a_docstring_is_seen() -> None:
    names = {public.name: public for public in reference.public_names("bayes_lora.inference.diagnostics")}
    assert names["CLAIMS"].docstring.startswith("Diagnostic -> control -> claim.")
    assert names["CLAIMS"].origin == "bayes_lora.inference.diagnostics.controls.CLAIMS"
    assert reference._constant_docstring("bayes_lora.inference.diagnostics.controls", "POWER") == ""


def test_an_undocumented_name_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference.undocumented() == []
    monkeypatch.setattr(bayes_lora.BayesLoRAError, "__doc__", None)
    assert reference.undocumented() == ["bayes_lora.BayesLoRAError"]


def test_no_two_names_share_a_page() -> None:
    assert len({public.page for public in NAMES}) == len(NAMES) > 70


def test_every_command_has_its_page() -> None:
    known = set(COMMANDS)
    assert {path.split("/")[-1] for path in REFERENCE if "/command-line/" in path} == {f"{name}.md" for name in known}
    for name in known:
        # Typer's own help names the same options.
        shown = set(re.findall(r"--[a-z][a-z-]+", run(name, "--help").stdout)) - {"--help"}
        written = {option for parameter in reference.parameters(name) for option in parameter.names}
        assert {option for option in shown if option in written} >= {o for o in written if o.startswith("--")}
        assert all(f"`{option}`" in REFERENCE[f"reference/command-line/{name}.md"] for option in written)
    assert "| `--json` |" in REFERENCE["reference/command-line/fit.md"]
    assert "| `--rank` | integer | `8` | LoRA rank. |" in REFERENCE["reference/command-line/fit.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert broken(text, PurePosixPath(page.relative_to(ROOT))) == []
    # Tests and pages that are named, not linked.
    for name in re.findall(r"`(tests/[\w/.]+|docs/[\w/.]+)`", text):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_links_of_made_pages_lead_somewhere() -> None:
    for path, text in {**REFERENCE, **TUTORIALS}.items():
        assert broken(text, PurePosixPath("docs", path)) == []


def test_the_readme_has_addresses_only() -> None:
    """A package index shows it, where no relative link works."""
    found = links.links((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link for link in found if not link.startswith(("https://", "#"))] == []


def test_docstrings_and_notebooks_name_pages_that_exist() -> None:
    rooms = ("bayes_lora", "models", "inference", "experiments")
    for path in [path for room in rooms for path in (ROOT / room).rglob("*")]:
        if path.suffix in {".py", ".ipynb"}:
            for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{path}: {name}"


def test_a_dead_link_is_seen() -> None:
    page = PurePosixPath("docs/theory.md")
    text = "[a](nowhere.md) [b](errata.md) ![c](images/none.png) `[d](code.md)` [e](../README.md#speed) [f](#here)\n"
    assert broken(text, page) == ["nowhere.md", "images/none.png"]
    assert broken(f"[g]({links.FILES}docs/none.md)", page) == [f"{links.FILES}docs/none.md"]
    with pytest.raises(links.DeadLinkError, match=r"docs/theory.md: ../nowhere.py leads to nowhere.py"):
        links.for_the_site("[h](../nowhere.py)", page)


def test_links_become_those_of_the_site() -> None:
    guide = PurePosixPath("docs/guides/hub.md")
    assert links.for_the_site("[a](../theory.md#model) `[b](x)`", guide) == "[a](../theory.md#model) `[b](x)`"
    assert links.for_the_site("[a](../../README.md#speed)", guide) == "[a](../index.md#speed)"
    assert links.for_the_site("[a](../../pyproject.toml)", guide) == f"[a]({links.FILES}pyproject.toml)"
    home = links.for_the_site(
        f"[a]({links.FILES}docs/theory.md) ![b]({links.PICTURES}docs/images/x.png)", PurePosixPath("README.md")
    )
    assert home == "[a](theory.md) ![b](images/x.png)"
    notebook = "../experiments/notebooks/pyro_svi_loop.ipynb"
    assert links.for_the_site(f"[a]({notebook})", PurePosixPath("docs/theory.md")) == "[a](tutorials/pyro_svi_loop.md)"
    assert links.for_the_site("<!-- from x -->\n| a |\n", guide) == "| a |\n"


def test_tutorials_show_code_outputs_and_pictures() -> None:
    for path, text, pictures in notebooks.tutorials():
        assert text.startswith("# ")
        assert len(pictures) >= 2
        assert all(f"]({name})" in text for name in pictures), path
        assert '<div class="output"' in text
    assert "<table>" in TUTORIALS["tutorials/posterior_predictive.md"]


def test_every_page_is_in_the_menu() -> None:
    def paths(entry: object) -> list[str]:
        children = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else []
        return [entry] if isinstance(entry, str) else [path for child in children for path in paths(child)]

    menu = paths(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(menu) == sorted({*written, "index.md"})


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == bayes_lora.__version__
    assert run("--version").stdout == f"bayes-lora {bayes_lora.__version__}\n"
