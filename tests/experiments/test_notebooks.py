"""The notebooks run from top to bottom, and are committed as they ran."""

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _complaints(notebook: Any) -> list[str]:
    """What the code cells wrote to stderr, and the errors they ended in."""
    outputs = [output for cell in _code(notebook) for output in cell.outputs]
    written = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    return written + [output.evalue for output in outputs if output.output_type == "error"]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["method_comparison", "posterior_predictive", "pyro_svi_loop"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # of the tests: pictures belong into the notebook here
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not _complaints(notebook)
    assert not list(tmp_path.iterdir())  # a notebook leaves nothing behind


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert [cell.execution_count for cell in _code(notebook)] == list(range(1, len(_code(notebook)) + 1))
    assert not _complaints(notebook)
    pictures = [o for cell in _code(notebook) for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    assert len(path.read_bytes()) < 1_000_000
