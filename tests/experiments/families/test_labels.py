"""How labels other than classes are read from files of the user's own, and what predictions say of them."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.multi_label import MultiLabel
from bayes_lora.experiments.families.ordinal import Ordinal
from bayes_lora.experiments.families.regression import Regression
from bayes_lora.experiments.families.robust_regression import RobustRegression
from bayes_lora.experiments.rows.rows import write_jsonl
from bayes_lora.experiments.tasks.tasks import file_task
from bayes_lora.metrics.multi_label import MultiLabelPrediction
from bayes_lora.metrics.regression import RegressionPrediction
from bayes_lora.models import GaussianRegression, StudentTRegression

PATH = Path("rows.jsonl")


def test_numbers_as_numbers_and_as_text() -> None:
    family = Regression()
    rows: list[dict[str, Any]] = [{"y": 3}, {"y": "2.5"}, {"y": "-1e3"}, {"y": 0.0}]
    assert family.names_in(rows, "y", PATH) == ()
    assert [row["y"] for row in family.with_labels(rows, "y", (), PATH)] == [3.0, 2.5, -1000.0, 0.0]
    for wrong in ("many", True, None, "nan", float("inf"), [1.0, 2.0]):
        with pytest.raises(DataError, match=r"rows\.jsonl, row 1, column 'y' holds .*: a label must be a finite num"):
            family.with_labels([{"y": wrong}], "y", (), PATH)
    likelihoods = [of.likelihood(torch.nn.Identity(), ()) for of in (Regression(), RobustRegression())]
    assert [type(of) for of in likelihoods] == [GaussianRegression, StudentTRegression]


def test_several_numbers_for_a_row(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "y": [i, i / 2]} for i in range(30)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = file_task(tmp_path / "rows.jsonl", None, ("text",), "y", task_type="regression")
    assert found.task.label_names == ("0", "1")
    assert all(len(row["y"]) == 2 for row in found.train)
    assert found.task.family.head(found.task.label_names)["num_labels"] == 2
    write_jsonl(tmp_path / "odd.jsonl", [*rows, {"text": "odd", "y": [1.0]}])
    with pytest.raises(DataError, match=r"row 31, column 'y' holds \[1\.0\]: a label must be a list of 2 numbers"):
        file_task(tmp_path / "odd.jsonl", None, ("text",), "y", task_type="regression")


def test_what_is_said_of_a_number() -> None:
    family = Regression()
    prediction = RegressionPrediction(torch.tensor([[[1.0]], [[3.0]]]), None, torch.tensor([2.0]))
    said = family.describe(prediction, 0, ())
    assert (said["prediction"], said["noise_std"], said["epistemic_std"]) == (2.0, 2.0, 1.0)
    assert said["std"] == pytest.approx(5**0.5)
    assert said["low_90"] < 2.0 - 1.64 * 2 < 2.0 + 1.64 * 2 < said["high_90"]
    assert family.cells(said)["prediction"] == "2.000"
    two = family.describe(RegressionPrediction(torch.zeros(2, 1, 2), None, torch.ones(2)), 0, ("0", "1"))
    assert two["prediction"] == [0.0, 0.0]
    assert family.cells(two)["prediction"] == "0.000, 0.000"


def test_grades_are_in_numerical_order() -> None:
    family = Ordinal()
    rows: list[dict[str, Any]] = [{"y": "10"}, {"y": 2}, {"y": "2.5"}, {"y": "-1"}]
    assert family.names_in(rows, "y", PATH) == ("-1", "2", "2.5", "10")
    with pytest.raises(DataError, match=r"grades without an order \(bad, good, 3\)|grades without an order"):
        family.names_in([{"y": "good"}, {"y": "bad"}, {"y": "3"}], "y", PATH)


def test_lists_of_names_and_names_in_one_field(tmp_path: Path) -> None:
    listed: list[dict[str, Any]] = [
        {"text": "a", "y": ["joy", "fear"]},
        {"text": "b", "y": []},
        {"text": "c", "y": ["joy", 3]},
    ] * 10
    write_jsonl(tmp_path / "rows.jsonl", listed)
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "y"], *([["a", "joy | fear"], ["b", ""], ["c", "joy|3"]] * 10)])
    found = [
        file_task(tmp_path / name, tmp_path / name, ("text",), "y", task_type="multi_label")
        for name in ("rows.jsonl", "rows.csv")
    ]
    assert found[0].task.label_names == found[1].task.label_names == ("3", "fear", "joy")
    assert [row["y"] for row in found[0].train[:3]] == [[0, 1, 1], [0, 0, 0], [1, 0, 1]]
    assert [row["y"] for row in found[1].train] == [row["y"] for row in found[0].train]


@pytest.mark.parametrize("wrong", [None, 3.5, [["joy"]], [""], "joy||fear", [True]])
def test_what_is_no_list_of_names(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2, column 'y' holds .*: labels must be a list of names"):
        MultiLabel().names_in([{"y": ["joy"]}, {"y": wrong}], "y", PATH)


def test_labels_that_training_does_not_know() -> None:
    with pytest.raises(DataError, match=r"row 1, .*: label 'pride' is none that a training row has; they have joy"):
        MultiLabel().with_labels([{"y": ["joy", "pride"]}], "y", ("joy", "fear"), PATH)
    with pytest.raises(DataError, match="no row has a label in column 'y'"):
        MultiLabel().names_in([{"y": []}], "y", PATH)


def test_what_is_said_of_several_labels() -> None:
    family, names = MultiLabel(), ("joy", "fear")
    prediction = MultiLabelPrediction(torch.tensor([[[2.0, -3.0]], [[1.0, 0.0]]]), torch.tensor([[1, 1]]))
    said = family.describe(prediction, 0, names)
    assert (said["label_names"], said["prediction"]) == (["joy", "fear"], ["joy"])
    assert said["probs"]["fear"] == pytest.approx((torch.tensor([-3.0, 0.0]).sigmoid()).mean().item())
    assert said["mutual_information"] == pytest.approx(float(prediction.mutual_information.sum()))
    assert family.cells(said)["prediction"].startswith("joy 0.8")
    nothing = family.describe(MultiLabelPrediction(torch.full((1, 1, 2), -4.0), None), 0, names)
    assert family.cells(nothing)["prediction"] == "-"
    assert family.label_fault([0, 1], names) is None
    assert all(family.label_fault(label, names) for label in ([0, 2], [0], "joy", [0.0, 1.0]))
