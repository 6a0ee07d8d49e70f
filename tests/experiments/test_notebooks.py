"""The notebooks run from top to bottom, and are committed as they ran.

At its own size a notebook takes minutes, in slow tests. With fewer rows, epochs and draws every cell runs as well.
"""

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# The sizes in each notebook's code, and what stands in their place where it has to be quick.
SMALLER = {
    "method_comparison": {
        "num_train=850, num_validation=100, num_out_of_distribution=40": (
            "num_train=72, num_validation=24, num_out_of_distribution=12"
        ),
        "train[:800]": "train[:60]",
        "train[800:]": "train[60:]",
        "epochs=3": "epochs=1",
        "else 6": "else 2",
    },
    "posterior_predictive": {
        "num_train=1200, num_validation=100, num_out_of_distribution=60": (
            "num_train=80, num_validation=32, num_out_of_distribution=16"
        ),
        "epochs=3": "epochs=4",  # 20 steps, of which the test of convergence takes the last half
        "log_every=5": "log_every=1",
        "num_samples=24": "num_samples=6",
        "num_samples=12": "num_samples=4",
        "num_samples=8": "num_samples=2",
    },
    "pyro_svi_loop": {
        "num_train=1200, num_validation=120, num_out_of_distribution=120": (
            "num_train=64, num_validation=64, num_out_of_distribution=16"
        ),
        "range(3)": "range(1)",
        "num_samples=16": "num_samples=2",
    },
}


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _complaints(notebook: Any) -> list[str]:
    """What the code cells wrote to stderr, and the errors they ended in."""
    outputs = [output for cell in _code(notebook) for output in cell.outputs]
    written = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    return written + [output.evalue for output in outputs if output.output_type == "error"]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["method_comparison", "posterior_predictive", "pyro_svi_loop"]


def _smaller(notebook: Any, sizes: dict[str, str]) -> Any:
    """The notebook with other sizes, each of which it must have."""
    for size, small in sizes.items():
        having = [cell for cell in _code(notebook) if size in cell.source]
        assert having, size
        for cell in having:
            cell.source = cell.source.replace(size, small)
    return notebook


def _run(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # of the tests: pictures belong into the notebook here
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    assert not _complaints(notebook)
    assert not list(folder.iterdir())  # a notebook leaves nothing behind


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    _run(_smaller(notebook, SMALLER[path.stem]), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_at_its_own_size(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(nbformat.read(path, as_version=4), tmp_path, monkeypatch)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert [cell.execution_count for cell in _code(notebook)] == list(range(1, len(_code(notebook)) + 1))
    assert not _complaints(notebook)
    pictures = [o for cell in _code(notebook) for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    assert len(path.read_bytes()) < 1_000_000
