"""Questions and their options as tokens, under the kinds of tokenizers that there are."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from bayes_lora.errors import DataError
from bayes_lora.experiments.inputs.choices import Choices
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.tasks import Task
from bayes_lora.models.likelihoods.generated_choice import WRITTEN_TOKENS
from tests.small_tokenizers import byte_pairs, sentence_pieces

ROWS: list[Row] = [
    {"question": "What is it?", "options": ["red", "very old"], "answer": 1},
    {"question": "Is it red?", "options": ["yes", "no", "old"], "answer": 0},
]
LETTERS, TEXTS = Choices(letters=True), Choices(letters=False)


def task(scoring: str = "multiple_choice", **options: Any) -> Task:
    return Task("t", ("question", "options"), "answer", (), task_type=scoring, **{"max_length": 512, **options})


def with_letters(*, blank: bool = True) -> Any:
    """Byte pairs to which both " A" and "A" are tokens, or "A" alone, and so on."""
    tokenizer = byte_pairs()
    letters = [f" {letter}" for letter in "ABC" if blank] + [*"ABC"]
    tokenizer.add_tokens([AddedToken(letter, normalized=False) for letter in letters])
    return tokenizer


TOKENIZERS: dict[str, tuple[Callable[[], Any], list[list[str]]]] = {
    "both exist": (with_letters, [[" A"], [" B"], [" C"]]),
    "bytes": (byte_pairs, [["Ġ", "A"], ["Ġ", "B"], ["Ġ", "C"]]),
    "a blank of its own": (lambda: with_letters(blank=False), [["Ġ", "A"], ["Ġ", "B"], ["Ġ", "C"]]),
}


@pytest.mark.parametrize(("build", "expected"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_which_tokens_letters_are(build: Callable[[], Any], expected: list[list[str]]) -> None:
    """Those with which the tokenizer goes on behind the prompt, whether the blank is a part of the letter or not."""
    tokenizer = build()
    _, row = encode(task(), ROWS, tokenizer)
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in row["option_ids"]] == expected
    assert tokenizer.decode(row["input_ids"]) == "Question: Is it red?\nA. yes\nB. no\nC. old\nAnswer:"


def test_letters_of_pieces() -> None:
    """Where a text that begins has a blank in front of it: the letter has one all the same, behind the prompt."""
    tokenizer = sentence_pieces()
    (row,) = encode(task("multiple_choice_likelihood"), ROWS[:1], tokenizer)
    assert row["input_ids"][0] == tokenizer.bos_token_id
    for ids, option in zip(row["option_ids"], ROWS[0]["options"], strict=True):
        assert tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")
        assert str(tokenizer.decode([*row["input_ids"][1:], *ids])).endswith(f"Answer: {option}")
    with pytest.raises(DataError, match=r"row 2: this tokenizer makes the same tokens of two of  A,  B, .* likelihood"):
        encode(task(), ROWS, tokenizer)  # it has seen no capital letters, so that all are unknown


def test_texts_are_as_they_continue_the_prompt() -> None:
    tokenizer = byte_pairs(begins="<s>")
    for row, (data, expected) in enumerate(
        zip(encode(task("multiple_choice_likelihood"), ROWS, tokenizer), ROWS, strict=True)
    ):
        assert data["labels"] == expected["answer"], row
        assert tokenizer.decode(data["input_ids"]) == f"<s>Question: {expected['question']}\nAnswer:"
        assert [tokenizer.decode(ids) for ids in data["option_ids"]] == [f" {text}" for text in expected["options"]]
    assert "labels" not in encode(task(), ROWS, tokenizer, with_labels=False).column_names


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_of_rows_with_more_and_fewer_options(side: str) -> None:
    tokenizer = byte_pairs()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
    data = encode(task("multiple_choice_likelihood"), ROWS, tokenizer)
    batch = TEXTS.collate(tokenizer)([dict(row) for row in data])
    options = batch["option_ids"]
    longest = max(len(ids) for row in data for ids in row["option_ids"])
    assert options.shape == (2, 3, longest)
    assert (options[0, 2] == -100).all()
    for row in range(2):
        assert [ids[ids != -100].tolist() for ids in options[row] if ids[0] != -100] == data[row]["option_ids"]
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == data[row]["input_ids"]
    assert torch.equal(batch["labels"], torch.tensor([1, 0]))
    assert TEXTS.lengths(data)[0] == len(data[0]["input_ids"]) + sum(map(len, data[0]["option_ids"]))


def test_answers_that_are_to_be_written() -> None:
    tokenizer = byte_pairs(begins="<s>")
    data = encode(task("multiple_choice_generated"), ROWS, tokenizer)
    asked = str(tokenizer.decode(data[1]["input_ids"]))
    assert asked.startswith("<s>Below is an instruction that describes a task. Write a response")
    assert asked.endswith(
        "### Instruction:\nPlease choose the correct answer to the question: Is it red?\n\nAnswer1: yes Answer2: no "
        "Answer3: old\n\nAnswer format: answer1/answer2/answer3\n\n### Response:\n"
    )
    written = [tokenizer.decode(ids) for ids in data[1]["option_ids"]]
    assert written == [f"the correct answer is answer{number}<end>" for number in (1, 2, 3)]
    for number, (name, answer) in enumerate(zip(data[1]["name_ids"], data[1]["option_ids"], strict=True), start=1):
        assert answer[-1 - len(name) : -1] == name
        assert str(tokenizer.decode(name)).endswith(str(number))
        assert len(name) > 1  # a number alone may stand anywhere
    batch = task("multiple_choice_generated").family.inputs.collate(_padding(tokenizer))([dict(row) for row in data])
    assert batch["name_ids"].shape[:2] == batch["option_ids"].shape[:2] == (2, 3)


def test_there_is_room_for_what_will_be_written() -> None:
    tokenizer = byte_pairs()
    with pytest.warns(UserWarning, match="1 of 1 rows have more than 68 tokens"):
        (row,) = encode(task("multiple_choice_generated", max_length=100), ROWS[:1], tokenizer)
    assert len(row["input_ids"]) + max(WRITTEN_TOKENS, *map(len, row["option_ids"])) <= 100


def _padding(tokenizer: Any) -> Any:
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_long_questions_are_cut_and_counted() -> None:
    tokenizer = byte_pairs()
    long = {"question": "zqx" * 30, "options": ["yes", "no"], "answer": 0}
    with pytest.warns(UserWarning, match="1 of 2 rows have more than 40 tokens: the beginning of their questions"):
        data = encode(task("multiple_choice_likelihood", max_length=40), [long, ROWS[1]], tokenizer)
    row = data[0]
    assert len(row["input_ids"]) + max(map(len, row["option_ids"])) == 40
    assert str(tokenizer.decode(row["input_ids"])).endswith("qx\nAnswer:")
    unanswerable = {"question": "What?", "options": ["yes", "zqx" * 30], "answer": 0}
    with pytest.raises(DataError, match="row 1: an option has 91 tokens, and a row has room for 40"):
        encode(task("multiple_choice_likelihood", max_length=40), [unanswerable], tokenizer)


def test_what_is_no_question_with_options() -> None:
    tokenizer = byte_pairs()
    with pytest.warns(UserWarning, match="1 of 2 rows have two options with the same text"):
        encode(task(), [ROWS[0], {**ROWS[1], "options": ["yes", "no", "yes"]}], tokenizer)
    with pytest.raises(DataError, match="row 2: a question has 2 to 26 options, not 1"):
        encode(task(), [ROWS[0], {**ROWS[1], "options": ["yes"]}], tokenizer)
    alone = Task("t", ("question",), "answer", (), task_type="multiple_choice")
    with pytest.raises(DataError, match="reads a question and its options"):
        encode(alone, ROWS, tokenizer)
    assert LETTERS.fault("What?") is None
    assert LETTERS.fault(" ") == "it must be text, and not empty"
    assert LETTERS.fault(["yes"]) == "a question has 2 to 26 options, not 1"
    assert LETTERS.shown(["yes", "no"]) == "A. yes  B. no"
    silent = copy.deepcopy(tokenizer)
    with pytest.raises(DataError, match="row 1: this tokenizer makes no token of"):
        encode(task(), ROWS, _Silent(silent))


class _Silent:
    """A tokenizer that makes nothing of anything."""

    def __init__(self, tokenizer: Any) -> None:
        self.bos_token_id, self.model_max_length = tokenizer.bos_token_id, tokenizer.model_max_length
        self.decode = tokenizer.decode

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": []}
