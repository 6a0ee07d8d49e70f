"""`bayes-lora draws`: errors against the obvious way, and a study that is gone on with."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, RunExistsError
from bayes_lora.experiments.draws.measure import Plan, errors_of, measure_batch, total, worth
from bayes_lora.experiments.draws.report import PICTURE_FILE, RESULTS_FILE, TABLE_FILE
from bayes_lora.inference import predict
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import stream
from tests.experiments.commands import run
from tests.networks import Batch, build_network, build_pair

FEW = ["--numbers", "2,4", "--truth", "12", "--compared", "8", "--json"]


def noisy() -> tuple[BayesianLoRA, Any]:
    return build_pair(build_network(), sample_scale=0.3, objective="elbo", num_train_examples=20)


def measured(batch: Batch, plan: Plan) -> dict[str, torch.Tensor]:
    model, guide = noisy()
    inputs = dict(batch)
    labels = inputs.pop("labels")
    with torch.no_grad():
        return measure_batch(model, guide, inputs, labels, plan)


def test_errors_are_those_of_predictions_one_by_one(batch: Batch) -> None:
    """Each prediction from S of the draws, against the truth, and without the truth's own share."""
    plan = Plan(numbers=(2, 4), num_truth=50, num_compared=8)
    model, guide = noisy()
    truth_seed, seed = (stream(0, part) >> 32 for part in (0, 1))
    truth = predict(model, guide, [batch], num_samples=50, draws="independent", seed=truth_seed).mean_probs
    squares = {}
    designs: tuple[Draws, ...] = ("independent", "antithetic", "tetrahedral")
    for design in designs:
        drawn = predict(model, guide, [batch], num_samples=8, draws=design, seed=seed).probs
        for number in (4,) if design == "tetrahedral" else (2, 4):
            parts = [drawn[start : start + number].mean(0) for start in range(0, 8, number)]
            squares[f"{design}/{number}"] = torch.stack([(part - truth).square().mean() for part in parts]).mean()
    of_truth = squares["independent/4"] * 4 / 54
    found = errors_of(measured(batch, plan), plan)
    for name, square in squares.items():
        expected = (square - of_truth).clamp_min(0).sqrt().item()
        assert found[name]["probs"].value == pytest.approx(expected, rel=1e-6)
    reference = found["independent/4"]["probs"].value
    own = found["antithetic/2"]["probs"].value
    assert worth(found, "antithetic/2", "probs", plan) == pytest.approx(4 * (reference / own) ** 2)


def test_batches_add_up(batch: Batch) -> None:
    plan = Plan(numbers=(2, 4), num_truth=20, num_compared=8)
    whole = measured(batch, plan)
    parts = [measured({name: value[rows] for name, value in batch.items()}, plan) for rows in (slice(2), slice(2, 5))]
    summed = total(parts)
    assert whole.keys() == summed.keys()
    for key, value in whole.items():
        torch.testing.assert_close(summed[key], value, rtol=1e-6, atol=1e-9)


def test_with_many_draws_the_error_of_independent_ones_falls_as_the_root(batch: Batch) -> None:
    plan = Plan(numbers=(2, 8, 32), num_truth=2000, num_compared=1024)
    found = errors_of(measured(batch, plan), plan)
    errors = [found[f"independent/{number}"]["probs"].value for number in plan.numbers]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)
    assert found["antithetic/2"]["probs"].value < errors[0] / 3


@pytest.fixture(scope="module")
def studied(fitted: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("draws") / "study"
    return out, json.loads(run("draws", f"ours={fitted[0]}", "--out", out, *FEW).stdout)


def test_it_writes_table_numbers_and_picture(studied: tuple[Path, Any]) -> None:
    out, printed = studied
    assert [row[:2] for row in printed["table"][1:]] == [["ours", "2"], ["ours", "4"], ["ours", "the mean alone"]]
    with (out / RESULTS_FILE).open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {(row["design"], row["draws"]) for row in rows} == {
        *((design, number) for design in ("independent", "antithetic") for number in ("2", "4")),
        ("tetrahedral", "4"),
        ("mean", ""),
    }
    assert {row["run"] for row in rows} == {"ours"}
    text = (out / TABLE_FILE).read_text(encoding="utf-8")
    assert "against 12 independent draws" in text
    assert "32 independent draws take" in text
    assert (out / PICTURE_FILE).stat().st_size > 10_000
    sessions = json.loads((out / "sessions.json").read_text(encoding="utf-8"))
    assert {"commit", "command"} <= sessions[0].keys()


def test_it_goes_on_where_it_was(studied: tuple[Path, Any], fitted: tuple[Path, dict[str, Any]]) -> None:
    out, printed = studied
    (lost, *_) = sorted((out / "measured" / "ours").glob("*.safetensors"))
    before = lost.read_bytes()
    lost.unlink()
    again = json.loads(run("draws", f"ours={fitted[0]}", "--out", out, *FEW).stdout)
    assert again["table"] == printed["table"]
    assert lost.is_file()
    assert len(before) == lost.stat().st_size
    with pytest.raises(RunExistsError, match="other settings"):
        run("draws", f"ours={fitted[0]}", "--out", out, *FEW, "--noise", "10")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--numbers", "4,2"], "must rise"),
        (["--numbers", "2,3"], "each be even"),
        (["--numbers", "2,x"], "whole numbers"),
        (["--noise", "0"], "noise=0"),
    ],
)
def test_what_it_cannot_take(
    options: list[str], message: str, fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run("draws", fitted[0], "--out", tmp_path / "study", *options)
