"""CONTRIBUTING's "Add a type of task", followed literally."""

from pathlib import Path

from tests.contributing import copy_with_example, run_pytest


def test_the_example_is_all_it_takes(tmp_path: Path) -> None:
    copy = copy_with_example(tmp_path, "Add a type of task")
    done = run_pytest(copy, "tests/experiments/families/test_families.py", "-k", "scores")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
