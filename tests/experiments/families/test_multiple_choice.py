"""Multiple choice from the command line: fitted, predicted, diagnosed, compared with rows from another task outside."""

import json
from pathlib import Path
from typing import Any

import pytest

from bayes_lora.errors import BaseModelError, ConfigurationError, DataError
from bayes_lora.experiments.families.family import task_family
from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.experiments.rows.rows import Row, read_rows, write_jsonl
from tests.experiments.choice_files import COLOURS, write_tasks
from tests.experiments.commands import run


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of few rows."""
    return write_tasks(tmp_path_factory.mktemp("data"))


def options_of(data_dir: Path, decoder: str) -> list[object]:
    return ["--task", "arc_easy", "--data-dir", data_dir, "--base-model", decoder, "--targets", "q_proj,v_proj"]


QUICK = ["--epochs", "1", "--batch-size", "8", "--num-samples", "4"]


@pytest.fixture(scope="module", params=["letter", "likelihood_per_token"])
def fitted(request: pytest.FixtureRequest, data_dir: Path, decoder: str, tmp_path_factory: Any) -> tuple[Path, Any]:
    """A run's folder, and what fit printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    scored = ["--scoring", request.param, "--objective", "elbo"]
    return out, json.loads(run("fit", *options_of(data_dir, decoder), *QUICK, *scored, "--out", out, "--json").stdout)


def test_what_is_predicted(fitted: tuple[Path, Any], tmp_path: Path) -> None:
    out, said = fitted
    assert 0 <= said["posterior_predictive"]["accuracy"] <= 1
    rows = read_rows(out / "predictions.jsonl")
    assert len(rows) == 20
    for number, row in enumerate(rows, start=30):
        assert list(row["probs"]) == [*"ABCD"[: 2 + number % 3]]
        assert sum(row["probs"].values()) == pytest.approx(1)
        assert row["label_name"] == "AB"[number % 2]
        assert row["prediction"] == max(row["probs"], key=row["probs"].get)
        assert (row["question"], row["options"][0]) == (f"What is house {number}?", "red")
    again = json.loads(run("predict", out, "--json").stdout)
    assert again["metrics"] == said["posterior_predictive"]
    assert [row["probs"] for row in again["predictions"]] == [row["probs"] for row in rows]
    # Rows of the user's own, in other forms, with more options than any that were trained on.
    other: list[Row] = [
        {"question": "Which?", "choices": [*COLOURS, "green", "grey"], "answer": "grey"},
        {"question": "Which?", "A": "red", "B": "blue", "answer": "B"},
    ]
    write_jsonl(tmp_path / "new.jsonl", other)
    found = json.loads(run("predict", out, "--input", tmp_path / "new.jsonl", "--json").stdout)
    assert [list(row["probs"]) for row in found["predictions"]] == [[*"ABCDEF"], [*"AB"]]
    assert [row["label_name"] for row in found["predictions"]] == ["F", "B"]
    write_jsonl(tmp_path / "new.jsonl", [{name: of for name, of in row.items() if name != "answer"} for row in other])
    shown = run("predict", out, "--input", tmp_path / "new.jsonl", "--mean").stdout
    assert "prob." in shown
    assert "metrics" not in json.loads(run("predict", out, "--input", tmp_path / "new.jsonl", "--json").stdout)


def test_it_is_diagnosed(fitted: tuple[Path, Any]) -> None:
    found = json.loads(run("diagnose", fitted[0], "--num-samples", "12", "--json").stdout)
    assert {"rate of labels", "accuracy", "rank of the labels"} <= found["findings"].keys()
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "What is house" in page
    assert "A. red" in page


def test_it_is_compared_with_another_task_outside(data_dir: Path, decoder: str, tmp_path: Path) -> None:
    arguments = ["compare", *options_of(data_dir, decoder), *QUICK, "--seeds", "0", "--held-out", "0.3", "--json"]
    arguments += ["--methods", "map,map+temperature,monteclora", "--out", tmp_path / "study"]
    found = json.loads(run(*arguments, "--outside", "arc_challenge", "--scoring", "likelihood").stdout)
    assert (found["failed"], found["missing"]) == ([], [])
    for numbers in found["methods"].values():
        assert 0 <= numbers["0"]["ood_auroc_entropy"] <= 1
    chosen = json.loads((tmp_path / "study" / "study.json").read_text())
    assert chosen["source"]["scoring"] == "likelihood"
    with pytest.raises(ConfigurationError, match="--outside mrpc: of this task and that one, only one has questions"):
        run(*arguments[:-1], tmp_path / "other", "--outside", "mrpc")
    with pytest.raises(ConfigurationError, match="laplace_last_layer is nothing for a row's own options: a lang"):
        run(*arguments[:-3], "laplace_last_layer", "--out", tmp_path / "other")


def test_answers_that_are_written(data_dir: Path, decoder: str, tmp_path: Path) -> None:
    """A random network names no option: that is counted, and wrong, and no row is lost."""
    arguments = [*options_of(data_dir, decoder), *QUICK, "--scoring", "generated"]
    found = json.loads(run("fit", *arguments, "--out", tmp_path / "run", "--json").stdout)
    assert found["posterior_predictive"]["unparsed"] > 0.5
    rows = read_rows(tmp_path / "run" / "predictions.jsonl")
    assert len(rows) == found["num_validation"] == 20
    for number, row in enumerate(rows, start=30):
        assert list(row["probs"]) == [*"ABCD"[: 2 + number % 3], "none"]
        assert row["probs"]["none"] == pytest.approx(
            1 - sum(row["probs"][name] for name in row["probs"] if name != "none")
        )
    right = [row["prediction"] == row["label_name"] for row in rows]
    assert found["posterior_predictive"]["accuracy"] == sum(right) / 20
    compared = ["compare", *arguments, "--methods", "map,monteclora", "--seeds", "0", "--held-out", "0.3", "--json"]
    methods = json.loads(run(*compared, "--out", tmp_path / "study").stdout)["methods"]
    assert all(0 <= numbers["0"]["unparsed"] <= 1 for numbers in methods.values())
    with pytest.raises(ConfigurationError, match="temperature asks for a temperature"):
        run(*compared[:-1], "--out", tmp_path / "other", "--methods", "map+temperature")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Which?", "options": ["red", "blue"]}, r"row 2 has no column 'answer'; it has question, options"),
        ({"question": "Which?", "options": ["red", "blue"], "answer": "green"}, "'green' is none of the options"),
        ({"question": "Which?", "options": ["red", "blue"], "answer": 2}, "the answer is number 2, and options count"),
        ({"question": "Which?", "options": ["red", ""], "answer": 0}, "row 2, column 'options' .* none of them empty"),
        ({"question": "Which?", "options": "red", "answer": 0}, "row 2, .*a question has 2 to 26 options, not 1"),
        ({"question": " ", "options": ["red", "blue"], "answer": 0}, "row 2, column 'question' .*text, and not empty"),
        ({"question": 3, "options": ["red", "blue"], "answer": 0}, "row 2, column 'question' holds 3"),
    ],
)
def test_rows_that_are_none(row: Row, message: str, decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"question": "Which?", "options": ["red", "blue"], "answer": "red"}, row])
    own = ["--task-type", "multiple_choice", "--train-file", path, "--base-model", decoder, "--out", tmp_path / "run"]
    with pytest.raises(DataError, match=message):
        run("fit", *own)
    assert not (tmp_path / "run").exists()


def test_an_encoder_is_refused(base: str) -> None:
    with pytest.raises(BaseModelError, match="is an encoder: what it says of a token depends on the tokens after it"):
        load_base_model(base, (), "multiple_choice")


def test_labels_that_are_none() -> None:
    family = task_family("multiple_choice")
    assert family.label_fault(1, ()) is None
    for label in (-1, 26, True, 1.0, "A", None):
        assert family.label_fault(label, ()) == "it must be the number of an option, from 0 up"
    assert family.read_label("C", ()) == 2
