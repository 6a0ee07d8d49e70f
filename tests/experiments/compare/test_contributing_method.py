"""The section "Add a method" of CONTRIBUTING.md, followed to the letter."""

import json
from pathlib import Path

import pytest

from tests.contributing import copy_with_example, example, run_pytest, run_python

MAIN = "from bayes_lora.experiments.command_line.entry import main; main()"
CONFORMANCE = "tests/experiments/compare/test_conformance.py"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with_example(tmp_path_factory.mktemp("contributing"), "Add a method")


def test_one_new_file_and_the_method_is_there(copy: Path) -> None:
    (path,) = example("Add a method")
    assert path == "experiments/compare/methods/weight_average.py"
    done = run_python(copy, "-c", MAIN, "methods", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = [method for method in json.loads(done.stdout)["methods"] if method["name"] == "weight_average"]
    assert (found["needs"], found["samples"]) == ("point", "one")
    assert found["options"] == [{"name": "last", "default": "5", "of": "prediction"}]


def test_it_keeps_what_it_promises(copy: Path) -> None:
    """And it stands in the docs' tables."""
    done = run_pytest(copy, CONFORMANCE, "tests/test_methods_table.py", "-k", "weight_average or test_methods_table")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_a_promise_that_it_does_not_keep_is_seen(copy: Path) -> None:
    (path,) = example("Add a method")
    source = (copy / path).read_text(encoding="utf-8")
    (copy / path).write_text(source.replace('needs="point"', 'needs="own"'), encoding="utf-8")
    try:
        done = run_pytest(copy, CONFORMANCE, "-k", "weight_average and starts_from")
    finally:
        (copy / path).write_text(source, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout


def test_only_examples_that_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="has no section 'Add a planet' with Python"):
        copy_with_example(tmp_path, "Add a planet")
    monkeypatch.setattr("tests.contributing.MAX_LINES", 20)
    with pytest.raises(ValueError, match=r"The example of 'Add a method' has \d+ lines, more than 20"):
        copy_with_example(tmp_path, "Add a method")
    assert list(tmp_path.iterdir()) == []
