"""Classes of words: read from JSON lines and CSV, put onto tokens, and given back word by word."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.token_classification import TokenClassification
from bayes_lora.experiments.inputs.words import Words
from bayes_lora.experiments.networks.base_models import resolve_base_model
from bayes_lora.experiments.rows.rows import Row, read_rows, write_jsonl
from bayes_lora.experiments.tasks.tasks import TaskRows, file_task
from bayes_lora.metrics.tokens import TokenPrediction
from tests.experiments.commands import run

FAMILY, WORDS = TokenClassification(), Words()
NAMES = ("O", "B-place", "I-place", "B-person")
ROWS: list[Row] = [
    {"words": ["She", "lives", "in", "New", "York"], "tags": ["O", "O", "O", "B-place", "I-place"]},
    {"words": ["Antidisestablishmentarianism", "bores", "Ann"], "tags": ["O", "O", "B-person"]},
    {"words": ["Rain", "."], "tags": ["O", "O"]},
] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve_base_model("minilm"))


def read(path: Path) -> TaskRows:
    return file_task(path, path, ("words",), "tags", task_type="token_classification")


def write_csv(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = [[" ".join(row["words"]), " ".join(row["tags"])] for row in rows]
        csv.writer(file).writerows([["words", "tags"], *lines])
    return path


def test_csv_and_json_say_the_same(tmp_path: Path, tokenizer: Any) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    found = [read(tmp_path / "rows.jsonl"), read(write_csv(tmp_path / "rows.csv", ROWS))]
    assert {of.task.label_names for of in found} == {("O", "B-person", "B-place", "I-place")}
    labels = [[row["tags"] for row in of.train] for of in found]
    assert labels[0] == labels[1]
    assert labels[0][:2] == [[0, 0, 0, 2, 3], [0, 0, 1]]
    tokens = [WORDS.tokens(tokenizer, [[row["words"] for row in of.train]], labels[0], 64) for of in found]
    assert tokens[0] == tokens[1]


def test_numbers_are_names_in_their_order(tmp_path: Path) -> None:
    """As many data sets have their classes."""
    rows = [{"words": ["a", "b", "c"], "tags": [10, 2, 0]}] * 12
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = read(tmp_path / "rows.jsonl")
    assert found.task.label_names == ("0", "2", "10")
    assert found.train[0]["tags"] == [2, 1, 0]


LISTS = r"labels must be a list of names, one for each word"
BAD: dict[str, tuple[Any, str]] = {
    "null": (None, LISTS),
    "a number": (3, LISTS),
    "numbers with a point": ([0.0] * 5, LISTS),
    "booleans": ([True] * 5, LISTS),
    "null inside": (["O", None, "O", "O", "O"], LISTS),
    "a blank name": (["O", " ", "O", "O", "O"], LISTS),
    "lists inside": ([["O"]] * 5, LISTS),
    "nothing": ([], LISTS),
    "empty text": ("", LISTS),
    "-100": (["O", "O", "O", "O", "-100"], r"-100 marks tokens without a class"),
    "-100, a number": ([0, 0, 0, 0, -100], r"-100 marks tokens without a class"),
    "-1": ("O O O O -1", r"-1 marks tokens without a class"),
}


@pytest.mark.parametrize(("label", "message"), BAD.values(), ids=BAD)
def test_labels_that_are_none(tmp_path: Path, label: Any, message: str) -> None:
    rows = [*ROWS[:3], {"words": ROWS[0]["words"], "tags": label}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 4, column 'tags' holds .*: {message}"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("tags", [["O"] * 4, ["O"] * 6, "O O", ["O"]])
def test_another_number_of_labels_than_words(tmp_path: Path, tags: Any) -> None:
    """Named by the row of the file, though rows are held out and shuffled afterwards."""
    count = len(tags.split() if isinstance(tags, str) else tags)
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"words": ROWS[0]["words"], "tags": tags}])
    with pytest.raises(DataError, match=rf"row 16, columns 'words' and 'tags': it has 5 words and {count} labels"):
        read(tmp_path / "rows.jsonl")
    found = write_csv(tmp_path / "rows.csv", [*ROWS[:3], {"words": ["one"], "tags": ["O", "O"]}])
    with pytest.raises(DataError, match=r"rows\.csv, row 4, columns .*: it has 1 words and 2 labels"):
        read(found)


@pytest.mark.parametrize("words", [[], "", "  ", None, 3, ["a", 3], [["a"]]])
def test_texts_that_are_no_words(tmp_path: Path, words: Any) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:3], {"words": words, "tags": ["O"]}])
    with pytest.raises(DataError, match=r"row 4, column 'words' holds .*: it must be a list of words"):
        read(tmp_path / "rows.jsonl")


def test_one_class_only_and_classes_of_other_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", [{"words": ["a"], "tags": ["O"]}] * 12)
    with pytest.raises(DataError, match=r"column 'tags' holds one class only \(O\)"):
        read(tmp_path / "one.jsonl")
    with pytest.raises(DataError, match=r"row 2, .*: class 'B-time' is none that a training row has; they have O, B-"):
        FAMILY.with_labels([{"y": ["O"]}, {"y": ["O", "B-time"]}], "y", NAMES, Path("rows.jsonl"))


def test_the_first_piece_of_a_word_has_its_class(tokenizer: Any) -> None:
    columns = WORDS.tokens(tokenizer, [[ROWS[1]["words"]]], [[0, 0, 3]], 64)
    pieces = tokenizer.convert_ids_to_tokens(columns["input_ids"][0])
    labels = columns["labels"][0]
    assert len(pieces) > 6
    assert [piece for piece, label in zip(pieces, labels, strict=True) if label != -100] == ["anti", "bore", "ann"]
    assert [label for label in labels if label != -100] == [0, 0, 3]
    unknown = WORDS.tokens(tokenizer, [[ROWS[1]["words"]]], None, 64)["labels"][0]
    assert [label == -1 for label in unknown] == [label != -100 for label in labels]


def test_words_of_a_row_that_is_cut_have_none(tokenizer: Any) -> None:
    words = ["word"] * 30
    columns = WORDS.tokens(tokenizer, [[words, ["a", "b"]]], [[1] * 30, [0, 2]], 12)
    assert [len(row) for row in columns["labels"]] == [12, 4]
    assert columns["labels"][0] == [-100, *[1] * 10, -100]
    prediction = TokenPrediction(torch.zeros(1, 2, 12, 3), torch.full((2, 12), -100), ("O", "B-x", "I-x"))
    for row, labels in enumerate(columns["labels"]):
        assert prediction.labels is not None
        prediction.labels[row, : len(labels)] = torch.tensor(labels)
    known = prediction.with_words(torch.tensor([[1] * 30, [0, 2, *[-100] * 28]]))
    assert torch.equal(known.labels, prediction.labels)  # type: ignore[arg-type]
    assert len(FAMILY.describe(prediction, 0, NAMES)["prediction"]) == 10


@pytest.mark.parametrize("silent", ["\u200b", "  ", "\ufe0f", ""])
def test_a_word_without_tokens_keeps_its_place(tokenizer: Any, silent: str) -> None:
    """Else the words after it would be predicted one place off."""
    assert tokenizer([[silent]], is_split_into_words=True, add_special_tokens=False)["input_ids"] == [[]]
    for words in (["a", silent, "b"], [silent, "a", "b"], ["a", "b", silent]):
        columns = WORDS.tokens(tokenizer, [[words]], [[1, 2, 3]], 64)
        assert [label for label in columns["labels"][0] if label != -100] == [1, 2, 3]
        assert columns["input_ids"][0].count(tokenizer.unk_token_id) == 1


def test_without_an_unknown_word_it_is_named(tokenizer: Any) -> None:
    other = AutoTokenizer.from_pretrained(resolve_base_model("minilm"))
    other.unk_token = None
    with pytest.raises(DataError, match=r"row 2 has the word '\\u200b', of which this tokenizer makes no token"):
        WORDS.tokens(other, [[["a"], ["b", "\u200b"]]], None, 64)


@pytest.mark.parametrize("kind", [RobertaTokenizer, GPT2Tokenizer])
def test_words_do_not_run_into_each_other(kind: Any, tmp_path: Path) -> None:
    """Where a blank is a part of the next word, each word has one."""
    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>", "Ġ", *"abc"]
    kind(vocab={token: index for index, token in enumerate(letters)}, merges=[]).save_pretrained(tmp_path)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path, **options) for options in ({}, WORDS.tokenizer_options)]
    text, together, apart = (
        tokenizers[1](" ab c")["input_ids"],
        *(WORDS.tokens(of, [[["ab", "c"]]], None, 64)["input_ids"][0] for of in tokenizers),
    )
    assert apart == text
    assert together != text


def test_fitted_and_predicted_from_the_command_line(tmp_path: Path, base: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    options = ["--task-type", "token_classification", "--text-columns", "words", "--label-column", "tags"]
    options += ["--base-model", base, "--epochs", "1", "--num-samples", "2", "--limit", "9", "--seed", "3"]
    printed = run("fit", "--train-file", tmp_path / "rows.jsonl", *options, "--out", tmp_path / "run")
    assert "F1 of entities" in printed.stdout
    write_jsonl(tmp_path / "new.jsonl", [{"words": ["Ann", "\u200b", "lives"]}, {"words": "in New York", "tags": ""}])
    predict = ["predict", tmp_path / "run", "--input", tmp_path / "new.jsonl"]
    printed = run(*predict, "--output", tmp_path / "out.jsonl")
    assert [len(row["prediction"]) for row in read_rows(tmp_path / "out.jsonl")] == [3, 3]
    assert "labelled rows" not in printed.stdout
    again = json.loads(run(*predict, "--json").stdout)
    assert "metrics" not in again
    assert [row["prediction"] for row in again["predictions"]] == [
        row["prediction"] for row in read_rows(tmp_path / "out.jsonl")
    ]
    write_jsonl(tmp_path / "new.jsonl", ROWS[:2])
    assert json.loads(run(*predict, "--json").stdout)["metrics"]["nll"] > 0
    write_jsonl(tmp_path / "new.jsonl", [ROWS[0], ROWS[1] | {"tags": ["O", "O"]}])
    with pytest.raises(DataError, match=r"new\.jsonl, row 2, .*: it has 3 words and 2 labels"):
        run(*predict)


def test_a_long_row_leaves_room_for_its_text() -> None:
    described = {"prediction": ["B-creative-work"] * 30, "probability": [0.5] * 30, "mutual_information": [0.0] * 30}
    shown = FAMILY.cells(described)["prediction"]
    assert shown == "B-creative-work B-creative-work ..."
