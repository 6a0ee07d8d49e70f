"""Base models with a short name: found where they are, listed in the help, linked from the card."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bayes_lora.errors import BaseModelError
from bayes_lora.experiments.command_line.main import app
from bayes_lora.experiments.networks.base_models import resolve_base_model
from bayes_lora.experiments.networks.named_models import NamedModel, named_models
from tests.contributing import copy_with_example, run_pytest


@pytest.mark.parametrize("name", named_models())
def test_each_is_found_and_listed(name: str) -> None:
    model = named_models()[name]
    assert model.name == name
    where = resolve_base_model(name)
    assert (Path(where) / "config.json").is_file() or resolve_base_model(where) == where
    for command in ("fit", "compare", "bench"):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0
        assert name in shown.output.partition("--base-model")[2]


def test_minilm_is_there() -> None:
    assert named_models()["minilm"].on_the_hub == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_package_that_is_missing_is_named() -> None:
    def find() -> str:
        raise ImportError

    with pytest.raises(BaseModelError, match=r"base model 'tiny' comes with a package .*Run: pip install tiny-bert\."):
        NamedModel("tiny", find, install="pip install tiny-bert").locate()


def test_the_example_of_contributing_is_all_it_takes(tmp_path: Path) -> None:
    copy = copy_with_example(tmp_path, "Add a base model")
    done = run_pytest(copy, "tests/experiments/networks/test_named_models.py", "-k", "tinybert")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_each_is_found_and_listed[tinybert] PASSED" in done.stdout


def test_without_its_package_a_model_comes_from_the_hub() -> None:
    def find() -> str:
        raise ImportError

    assert NamedModel("tiny", find, on_the_hub="owner/tiny", install="pip install tiny-bert").locate() == "owner/tiny"
