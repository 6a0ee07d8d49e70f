"""docs/support.md says what the tests show, and nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import support
from tests.support import NOT_TRIED, PAGE, Cell, table

ROOT = Path(__file__).parent.parent


def test_the_page_is_that_of_the_marks() -> None:
    code = "from tests.support import collect, page; import sys; sys.stdout.write(page(collect()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == PAGE.read_text(encoding="utf-8"), "python -m tests.support writes it anew"


def test_a_cell_has_one_verdict() -> None:
    cells = [Cell("adapter", "works", "DoRA", "a"), Cell("adapter", "refused", "DoRA", "b")]
    with pytest.raises(ValueError, match=r"adapter: \['DoRA'\] have two verdicts"):
        table("adapter", cells, {})
    with pytest.raises(ValueError, match=r"\['DoRA'\] have two verdicts"):
        table("adapter", cells[:1], {"DoRA": "nobody did"})
    assert table("adapter", [cells[0], cells[0]], {}).splitlines()[2:] == ["| DoRA | works | `a` |"]
    assert NOT_TRIED.keys() <= support.AXES.keys()


OF_TESTS = """
import pytest
@pytest.mark.shows({mark})
{above}
@pytest.mark.parametrize("name", ["a", "b"])
def test_it(name):
    pass
"""


@pytest.mark.parametrize(
    ("mark", "above", "message"),
    [
        ('"adapter", "works", {"a": "A", "c": "C"}', "", r"has no parameters \['c'\], of which its mark speaks"),
        ('"adaptor", "works", "A"', "", "no axis 'adaptor'"),
        ('"adapter", "perhaps", "A"', "", "no verdict 'perhaps'"),
        ('"adapter", "works", "A"', "@pytest.mark.skipif(True, reason='')", "is marked 'skipif', and so shows nothing"),
    ],
)
def test_marks_that_show_nothing_are_errors(tmp_path: Path, mark: str, above: str, message: str) -> None:
    status, said = collected(tmp_path, OF_TESTS.format(mark=mark, above=above))
    assert status == pytest.ExitCode.USAGE_ERROR
    assert re.search(message, said)


def test_a_mark_is_of_the_parameters_it_names(tmp_path: Path) -> None:
    status, said = collected(tmp_path, OF_TESTS.format(mark='"adapter", "works", {"a": "A"}', above=""))
    assert status == pytest.ExitCode.OK
    assert "[Cell(axis='adapter', verdict='works', what='A', test='test_marked.py::test_it')]" in said


def test_a_marked_test_that_is_skipped_has_failed(tmp_path: Path) -> None:
    skips = OF_TESTS.replace("    pass", "    pytest.skip('not here')")
    (tmp_path / "test_marked.py").write_text(skips.format(mark='"adapter", "works", "A"', above=""))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = shows: a cell\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "test_it[a] shows a cell of docs/support.md, and was skipped." in done.stdout


def collected(folder: Path, tests: str) -> tuple[int, str]:
    """What pytest, in a process of its own, says of a file of tests."""
    (folder / "test_marked.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = shows: a cell\n")
    code = (
        "import pytest, sys; from tests.support import Collector; of = Collector(); "
        f"status = pytest.main(['--collect-only', '-q', '--rootdir', {str(folder)!r}, {str(folder)!r}], plugins=[of]); "
        "print(of.cells); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
