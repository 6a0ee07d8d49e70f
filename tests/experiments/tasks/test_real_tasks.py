"""The built-in tasks on their real rows, where a folder holds them."""

import json
import os
from pathlib import Path

import pytest

from bayes_lora.experiments.rows.rows import read_rows
from tests.experiments.commands import run

VARIABLE = "BAYES_LORA_DATA_DIR"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        VARIABLE not in os.environ,
        reason=f"set {VARIABLE} to a folder D that holds D/<task>/{{train,validation}}.jsonl.gz to run it",
    ),
]


def data_options(task: str) -> list[object]:
    return ["--task", task, "--data-dir", os.environ[VARIABLE]]


@pytest.mark.parametrize("task", ["rte", "cola", "wic", "boolq"])
def test_every_task_is_fitted_and_predicted_again(task: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quick = ["--limit", "32", "--epochs", "1", "--max-length", "32", "--num-samples", "2"]
    metrics = json.loads(run("fit", *data_options(task), "--out", out, *quick, "--json").stdout)
    again = json.loads(run("predict", out, "--json").stdout)
    assert [row["probs"] for row in again["predictions"]] == [
        row["probs"] for row in read_rows(out / "predictions.jsonl")
    ]
    assert again["metrics"] == metrics["posterior_predictive"]
    given = Path(os.environ[VARIABLE]) / task / "validation.jsonl.gz"
    found = json.loads(run("predict", out, "--input", given, "--mean", "--json").stdout)
    assert len(found["predictions"]) == len(read_rows(given))
    assert 0 < found["metrics"]["accuracy"] < 1


def test_mrpc_is_learned(tmp_path: Path) -> None:
    options = ["--epochs", "3", "--lr", "1e-3", "--batch-size", "32", "--seed", "0"]
    result = run("fit", *data_options("mrpc"), "--out", tmp_path / "run", *options, "--json")
    metrics = json.loads(result.stdout)
    assert metrics["num_validation"] == 408
    assert metrics["posterior_predictive"]["accuracy"] >= 0.76
    assert metrics["point"]["accuracy"] >= 0.76
