"""Tasks of multiple choice by their names: rows in files, rows as the hub has them, scorings."""

import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from bayes_lora.errors import DataError, TaskError
from bayes_lora.experiments.rows.rows import write_jsonl
from bayes_lora.experiments.tasks.choice_tasks import CHOICE_TASKS, files_of
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import TASKS, load_task

INSTRUCTION = (
    "Please choose the correct answer to the question: Which is hot?\n\n"
    "Answer1: ice Answer2: fire\n\nAnswer format: answer1/answer2"
)
LINE = {"instruction": INSTRUCTION, "input": "", "output": "the correct answer is answer2", "answer": "answer2"}
ROW = {"question": "Which is hot?", "options": ["ice", "fire"], "answer": 1}
_CHOICES = {"text": ["ice", "fire"], "label": ["A", "B"]}
ON_THE_HUB: dict[str, dict[str, Any]] = {
    "piqa": {"goal": "Which is hot?", "sol1": "ice", "sol2": "fire", "label": 1},
    "siqa": {
        "context": "Which",
        "question": "is hot?",
        "answerA": "ice",
        "answerB": "fire",
        "answerC": "I",
        "label": "2",
    },
    "winogrande": {"sentence": "Which is hot?", "option1": "ice", "option2": "fire", "answer": "2"},
    "arc_easy": {"id": "1", "question": "Which is hot?", "choices": _CHOICES, "answerKey": "B"},
    "arc_challenge": {"id": "1", "question": "Which is hot?", "choices": _CHOICES, "answerKey": "B"},
    "openbookqa": {"id": "1", "question_stem": "Which is hot?", "choices": _CHOICES, "answerKey": "B"},
    "boolq_question": {"question": "Which is hot?", "answer": False, "passage": "Fire is hot."},
}
EACH = pytest.mark.parametrize("name", CHOICE_TASKS)


def write_task(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    for file in files_of(name):
        write_jsonl(folder / file, rows)
    return folder


@EACH
def test_a_folder_holds_every_task(tmp_path: Path, name: str) -> None:
    loaded = load_task(name, write_task(tmp_path, name, LINE))
    assert loaded.task is TASKS[name]
    assert loaded.train == loaded.validation == [ROW]
    write_task(tmp_path, name, LINE, {**LINE, "answer": "answer3"})
    with pytest.raises(DataError, match=r"_train.*\.jsonl\.gz, row 2: the answer 'answer3' is none of the options"):
        load_task(name, tmp_path)


@EACH
def test_the_hub_has_every_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, configuration: str | None, *, split: str) -> datasets.Dataset:
        asked.append((path, configuration, split))
        return datasets.Dataset.from_list([ON_THE_HUB[name]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (row,) = load_task(name).validation
    options = {"siqa": ["ice", "fire", "I"], "boolq_question": ["true", "false"]}.get(name, ["ice", "fire"])
    assert (row["question"], row["options"], row["answer"]) == ("Which is hot?", options, 1)
    source = CHOICE_TASKS[name]
    assert asked == [(*source.hub, "train"), (*source.hub, source.eval_split)]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    expected = (
        r"no folder .*commonsense\. --data-dir takes the folder that holds commonsense/piqa_train_part\.jsonl\.gz"
    )
    with pytest.raises(DataError, match=expected):
        load_task("piqa", tmp_path)


@pytest.mark.parametrize(
    ("scoring", "task_type"),
    [
        (None, "multiple_choice"),
        ("letter", "multiple_choice"),
        ("likelihood", "multiple_choice_likelihood"),
        ("likelihood_per_token", "multiple_choice_likelihood_per_token"),
    ],
)
def test_how_options_are_scored(scoring: str | None, task_type: str, tmp_path: Path) -> None:
    source = RowsSource(task="piqa", data_dir=str(write_task(tmp_path, "piqa", LINE, LINE)), scoring=scoring, limit=1)
    rows = source.load()
    assert (rows.task.name, rows.task.task_type, source.family.name) == ("piqa", task_type, task_type)
    assert (rows.train, rows.validation) == ([ROW], [ROW])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "piqa", "scoring": "luck"}, "--scoring luck is none of letter, likelihood, likelihood_per_token"),
        ({"task": "mrpc", "scoring": "letter"}, "and mrpc has none: it belongs to multiple choice"),
        ({"train_file": "rows.csv", "text_columns": ("a",), "scoring": "letter"}, "and classification has none"),
        (
            {"train_file": "rows.csv", "task_type": "multiple_choice", "text_columns": ("a", "b")},
            "--text-columns does not go with --task-type multiple_choice, which knows its columns by their names",
        ),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        RowsSource(**options)


@pytest.mark.slow
@pytest.mark.skipif("BAYES_LORA_DATA_DIR" not in os.environ, reason="set BAYES_LORA_DATA_DIR to run it")
@EACH
def test_all_published_rows_are_read(name: str) -> None:
    rows = load_task(name, Path(os.environ["BAYES_LORA_DATA_DIR"]))
    assert min(len(rows.train), len(rows.validation)) >= 500
    assert not any("Answer" in option and ":" in option for row in rows.validation for option in row["options"])
