"""Questions with options: the forms of rows, their answers, and what is wrong with some."""

from pathlib import Path
from typing import Any

import pytest

from bayes_lora.errors import DataError
from bayes_lora.experiments.rows.choice_rows import answer_of, options_of, with_options
from bayes_lora.experiments.rows.rows import Row

ICE, COLOURS = ["ice", "fire"], ["red", "green", "blue"]
ARC = "Please choose the correct answer to the question: Which is hot?\n\nAnswer1: ice Answer2: fire\n\nAnswer format: "
PIQA = "Please choose the correct solution to the question: Heat it.\n\nSolution1: ice\n\nSolution2: fire\n\nAnswer "
TRUTH = "Please answer the following question with true or false, question: is it hot?\n\nAnswer format: true/false"

FORMS: dict[str, tuple[Row, tuple[str, list[str], Any]]] = {
    "plain": ({"question": "hot?", "options": ICE, "answer": "fire"}, ("hot?", ICE, "fire")),
    "choices": ({"question": "hot?", "choices": ICE, "label": 1}, ("hot?", ICE, 1)),
    "named": (
        {"question": "hot?", "choices": {"text": ICE, "label": ["1", "2"]}, "answerKey": "2"},
        ("hot?", ICE, 1),
    ),
    "OpenBookQA": (
        {"question_stem": "hot?", "choices": {"text": ICE, "label": ["A", "B"]}, "answerKey": "B"},
        ("hot?", ICE, 1),
    ),
    "columns": ({"question": "hot?", "A": "ice", "B": "fire", "C": "", "answer": "B"}, ("hot?", ICE, 1)),
    "LLM-Adapters": (
        {"instruction": ARC + "answer1/answer2", "input": "", "output": "the answer", "answer": "answer2"},
        ("Which is hot?", ICE, 1),
    ),
    "solutions": ({"instruction": PIQA + "format: solution1/solution2", "answer": "solution1"}, ("Heat it.", ICE, 0)),
    "true or false": ({"instruction": TRUTH, "answer": "false"}, ("is it hot?", ["true", "false"], 1)),
    "BoolQ": ({"question": "is it hot?", "answer": True}, ("is it hot?", ["true", "false"], 0)),
    "PIQA": ({"goal": "Heat it.", "sol1": "ice", "sol2": "fire", "label": 1}, ("Heat it.", ICE, 1)),
    "WinoGrande": (
        {"sentence": "_ is hot.", "option1": "ice", "option2": "fire", "answer": "2"},
        ("_ is hot.", ICE, 1),
    ),
    "SIQA": (
        {
            "context": "It is red.",
            "question": "What?",
            **dict(zip(("answerA", "answerB", "answerC"), COLOURS, strict=True)),
        }
        | {"label": "3"},
        ("It is red. What?", COLOURS, 2),
    ),
}


@pytest.mark.parametrize(("row", "expected"), FORMS.values(), ids=FORMS)
def test_the_forms_of_rows(row: Row, expected: tuple[str, list[str], Any]) -> None:
    (found,) = with_options([{**row, "more": 1}], Path("rows"))
    assert (found["question"], found["options"], found["answer"]) == expected
    assert found.keys() == {"question", "options", "answer", "more"}
    assert with_options([found], Path("rows")) == [found]
    unanswered = {name: value for name, value in row.items() if name not in ("answer", "answerKey", "label")}
    if set(unanswered) != {"question"}:
        (asked,) = with_options([unanswered], Path("rows"))
        assert (asked["question"], asked["options"]) == expected[:2]
        assert "answer" not in asked


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "hot?"}, "rows, row 2 has question: no question with options. Name its columns question"),
        ({"instruction": "Which is hot?", "answer": "a"}, "the instruction does not end with 'Answer format: '"),
        ({"instruction": ARC + "answer1/answer3", "answer": "answer1"}, "the instruction has no 'Answer3:'"),
        ({"instruction": ARC + "answer1/answer2", "answer": "answer3"}, "the answer 'answer3' is none of the options"),
        ({"question": "hot?", "answer": "ice"}, "the question has no options, and the answer 'ice' is neither true"),
        ({"question": "hot?", "choices": {"text": ICE}, "answer": 0}, "column 'choices' must be a list of texts, or"),
        ({"question": "hot?", "choices": {"text": ICE, "label": ["A"]}, "answer": "A"}, "has 2 texts and 1 labels"),
        (
            {"question": "hot?", "choices": {"text": ["ice"], "label": ["A"]}, "answer": "A"},
            "has 2 to 26 options, not 1",
        ),
    ],
)
def test_rows_that_are_none(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_options([FORMS["plain"][0], row], Path("rows"))


@pytest.mark.parametrize(
    ("written", "options", "number"),
    [
        ("green", COLOURS, 1),
        ("B", COLOURS, 1),
        ("b", COLOURS, 1),
        (" green ", COLOURS, 1),
        (2, COLOURS, 2),
        ("2", COLOURS, 2),
        ("2", ["3", "2", "1"], 1),  # the text comes first
        ("b", ["a", "c", "b"], 2),
    ],
)
def test_answers(written: Any, options: list[str], number: int) -> None:
    assert answer_of(written, options) == number


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("yellow", r"the answer 'yellow' is none of the options \(red, green, green\)"),
        ("green", "the answer 'green' is the text of two of the options. Give its letter"),
        ("D", "the answer 'D' is none of the options"),
        (3, "the answer is number 3, and options count from 0 to 2"),
        ("3", "the answer is number 3"),
        (-1, "the answer is number -1"),
        ("", "the row has no answer"),
        (None, "the row has no answer"),
        (True, "the row has no answer"),
        (1.0, "the row has no answer"),
    ],
)
def test_answers_that_are_none(written: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        answer_of(written, ["red", "green", "green"])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["ice"], "a question has 2 to 26 options, not 1"),
        ("ice", "a question has 2 to 26 options, not 1"),
        (["ice", ""], "options must be a list of texts, none of them empty"),
        ("ice||fire", "none of them empty"),
        (["ice", 3], "must be a list of texts"),
        ({"A": "ice"}, "must be a list of texts"),
        ([str(number) for number in range(27)], "not 27"),
    ],
)
def test_options_that_are_none(written: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        options_of(written)


def test_options_of_a_csv_file() -> None:
    assert options_of("ice | fire") == ICE
