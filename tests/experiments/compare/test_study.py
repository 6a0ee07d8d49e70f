"""The rows of a comparison."""

import json
from pathlib import Path

import pytest

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.compare.study import StudyRows
from bayes_lora.experiments.tasks.sources import RowsSource
from tests.experiments.compare.studies import make_study


def test_rows_to_choose_settings_by(data_dir: Path, base: str) -> None:
    rows = make_study(data_dir, base, eval_split="held_out").load()
    own = [{row["sentence1"] + row["sentence2"] for row in part} for part in (rows.fit, rows.held_out, rows.evaluated)]
    assert not own[0] & own[1]
    assert not own[0] & own[2]
    assert not own[1] & own[2]  # what is chosen on some rows is not judged by them
    assert rows.evaluated
    rows = make_study(data_dir, base, train_rows=20, eval_rows=5).load()
    assert (len(rows.fit) + len(rows.held_out), len(rows.evaluated)) == (20, 5)
    assert rows.outside is not None
    assert len(rows.outside.validation) == 5
    tried = make_study(data_dir, base, eval_split="held_out", eval_rows=5).load()
    assert tried.outside is not None
    foreign, other = (
        {row["sentence1"] + row["sentence2"] for row in part.validation} for part in (rows.outside, tried.outside)
    )
    assert other
    assert not foreign & other  # nor from outside by the same rows
    texts = [{row["sentence1"] + row["sentence2"] for row in part} for part in (rows.fit, rows.held_out)]
    assert not texts[0] & texts[1]


def test_the_first_rows_of_a_sorted_file_are_not_taken_for_all(base: str, data_dir: Path, tmp_path: Path) -> None:
    texts = [f"a text that is number {number}" for number in range(40)]
    for name, labels in (("sorted", [0] * 20 + [1] * 20), ("mixed", [0, 1] * 20)):
        lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def load(train: str, evaluated: str) -> StudyRows:
        files = [str(tmp_path / f"{name}.jsonl") for name in (train, evaluated)]
        source = RowsSource(train_file=files[0], eval_file=files[1], text_columns=("text",))
        return make_study(data_dir, base, source=source, train_rows=20, eval_rows=10).load()

    with pytest.raises(DataError, match="--train-rows takes the first 20 of 40 rows, which have none of class 1"):
        load("sorted", "mixed")
    with pytest.raises(DataError, match="--eval-rows takes the first 10 of 40 rows"):
        load("mixed", "sorted")
    rows = load("mixed", "mixed")
    assert len(rows.evaluated) == 10
    assert rows.outside is not None  # a task of its own beside rows of one's own


def test_a_task_is_not_outside_of_itself(data_dir: Path, base: str) -> None:
    with pytest.raises(ConfigurationError, match="--outside mrpc is the task itself"):
        make_study(data_dir, base, outside="mrpc")
