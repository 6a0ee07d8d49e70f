"""CONTRIBUTING's "Add a likelihood", followed literally."""

from pathlib import Path

from tests.contributing import copy_with_example, run_tests


def test_the_example_is_all_it_takes(tmp_path: Path) -> None:
    copy = copy_with_example(tmp_path, "Add a likelihood")
    said = run_tests(copy, "tests/models/likelihoods/test_conformance.py", "-k", "poisson")
    assert "6 passed" in said
