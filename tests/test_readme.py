"""The README's Python runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pyro
import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


# torch says so of TrainingArguments' default wherever there is no accelerator.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BLOCKS) == 4
    monkeypatch.chdir(tmp_path)  # one of them writes a folder
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert names["prediction"].probs.shape == (32, 32, 2)
    assert not list(pyro.get_param_store().keys())


def test_local_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        named = [*re.findall(r"\]\((?!http)([^)#]+)\)", text), *re.findall(r"`(tests/[\w/.]+|docs/[\w/.]+)`", text)]
        for link in named:
            start = page.parent if not link.startswith(("tests/", "docs/")) else ROOT
            assert (start / link).exists(), f"{page.name}: {link}"
