"""CONTRIBUTING's "Add a likelihood", followed literally."""

from pathlib import Path

from tests.contributing import copy_with_example, run_pytest


def test_the_example_is_all_it_takes(tmp_path: Path) -> None:
    copy = copy_with_example(tmp_path, "Add a likelihood")
    done = run_pytest(copy, "tests/models/likelihoods/test_conformance.py", "-k", "poisson")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 passed" in done.stdout
