"""Rows of language models: their forms, what is wrong with some, and what becomes tokens and labels."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_lora.errors import BaseModelError, DataError, TaskError
from bayes_lora.experiments.families.family import task_family
from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.experiments.rows.completion_rows import with_completions
from bayes_lora.experiments.rows.rows import Row, read_rows, write_jsonl
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import Task
from tests.experiments.commands import run
from tests.small_tokenizers import byte_pairs

TASK = Task("rows", ("prompt",), "completion", (), task_type="language_model", max_length=16)
MESSAGES = [{"role": "user", "content": "Is it red?"}, {"role": "assistant", "content": "It is."}]


def test_the_forms_of_rows() -> None:
    rows: list[Row] = [
        {"prompt": "Answer:", "completion": " yes"},
        {"messages": MESSAGES},
        {"instruction": "Is it?", "input": "", "output": "yes", "answer": "true"},
        {"instruction": "Is it?", "input": "It is.", "output": "yes"},
    ]
    found = with_completions(rows, Path("rows.jsonl"))
    assert [row["completion"] for row in found] == [" yes", "It is.", "yes", "yes"]
    assert found[1]["prompt"] == MESSAGES[:1]
    assert found[2]["answer"] == "true"
    assert found[2]["prompt"].endswith("the request.\n\n### Instruction:\nIs it?\n\n### Response:\n")
    assert found[3]["prompt"].endswith("### Instruction:\nIs it?\n\n### Input:\nIt is.\n\n### Response:\n")
    assert ("further context" in found[2]["prompt"], "further context" in found[3]["prompt"]) == (False, True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Answer:"}, r"rows\.jsonl, row 2 has a prompt and no 'completion'"),
        ({"instruction": "Is it?"}, "row 2 has an instruction and no 'output'"),
        ({"instruction": "Is it?", "input": 3, "output": "yes"}, "'instruction' and 'input' must be text"),
        ({"messages": MESSAGES[:1]}, "the last of at least two messages must be the assistant's"),
        ({"messages": [{"role": "user"}]}, "they must be a list of"),
        ({"messages": []}, "they must be a list of"),
        ({"text": "a"}, "row 2 has neither 'prompt' and 'completion', .* it has text. Name other columns"),
        ({"prompt": "Answer:", "completion": ""}, "row 2, column 'completion' .*must be text, and not empty"),
        ({"prompt": 3, "completion": "yes"}, "row 2, column 'prompt' holds 3: it must be text"),
    ],
)
def test_rows_that_are_none(row: Row, message: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Answer:", "completion": " yes"}, row])
    with pytest.raises(DataError, match=message):
        RowsSource(train_file=str(tmp_path / "rows.jsonl"), task_type="language_model").load()


def test_columns_of_ones_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"q": f"Answer {number}:", "a": " yes"} for number in range(10)])
    source = RowsSource(
        train_file=str(tmp_path / "rows.jsonl"), text_columns=("q",), label_column="a", task_type="language_model"
    )
    rows = source.load()
    assert (rows.task.text_columns, rows.task.label_column, rows.task.max_length) == (("q",), "a", 512)
    assert len(rows.train) + len(rows.validation) == 10
    with pytest.raises(TaskError, match="--train-file needs --text-columns"):
        RowsSource(train_file=str(tmp_path / "rows.jsonl"))


def test_the_completion_alone_is_learned() -> None:
    tokenizer = byte_pairs()
    rows: list[Row] = [{"prompt": "Answer:", "completion": " yes"}, {"prompt": MESSAGES[:1], "completion": "It is."}]
    data = encode(Task.from_json({**TASK.to_json(), "max_length": 64}), rows, tokenizer, with_labels=False)
    for row, ends in zip(data, (" yes<end>", "It is.<end>\n"), strict=True):
        learned = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(learned) == ends
        assert row["input_ids"][-len(learned) :] == learned
        assert row["labels"][: -len(learned)] == [-100] * (len(row["labels"]) - len(learned))
    # Its padding token is the one that ends texts, which has to stay a label.
    tokenizer.pad_token = tokenizer.eos_token
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = TASK.family.inputs.collate(tokenizer)([dict(row) for row in data])
        assert torch.equal((batch["labels"] != -100).sum(-1), _lengths(data))
        assert ((batch["labels"] == -100) | (batch["labels"] == batch["input_ids"])).all()


def _lengths(data: Any) -> torch.Tensor:
    return torch.tensor([sum(label != -100 for label in row["labels"]) for row in data])


def test_long_rows_are_cut_and_counted() -> None:
    tokenizer = byte_pairs()
    long = {"prompt": "zqx" * 30, "completion": " yes"}
    with pytest.warns(UserWarning, match="1 of 2 rows have more than 16 tokens: the beginning of their prompts"):
        data = encode(TASK, [long, {"prompt": "Answer:", "completion": " yes"}], tokenizer)
    assert len(data[0]["input_ids"]) == 16
    assert str(tokenizer.decode(data[0]["input_ids"])).endswith("qx yes<end>")
    with pytest.raises(DataError, match="row 2: its completion has 91 tokens, and a row has room for 16"):
        encode(TASK, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "zqx" * 30}], tokenizer)


def test_what_is_no_single_prompt() -> None:
    pair = Task("rows", ("prompt", "more"), "completion", (), task_type="language_model")
    with pytest.raises(DataError, match="reads one prompt"):
        encode(pair, [{"prompt": "a", "more": "b", "completion": "c"}], byte_pairs())


def test_an_encoder_is_refused_and_a_decoder_is_not(base: str, decoder: str) -> None:
    with pytest.raises(BaseModelError, match="is an encoder: what it says of a token depends on the tokens after it"):
        load_base_model(base, (), "language_model")
    assert load_base_model(decoder, (), "language_model").processor.pad_token == "<end>"


def test_from_the_command_line(decoder: str, tmp_path: Path) -> None:
    """Fit on messages and instructions, predict other rows; objective elbo counts the tokens by itself."""
    path, out = tmp_path / "rows.jsonl", tmp_path / "run"
    forms: list[Row] = [{"messages": MESSAGES}, {"instruction": "Is it?", "input": "", "output": " yes"}]
    write_jsonl(path, [forms[number % 2] for number in range(12)])
    own = ("--base-model", decoder, "--epochs", 1, "--batch-size", 4, "--micro-batch-size", 2, "--num-samples", 2)
    given = ("--train-file", path, "--task-type", "language_model", "--objective", "elbo", *own)
    assert run("fit", *given, "--out", out).exit_code == 0
    write_jsonl(tmp_path / "new.jsonl", [{"prompt": "Answer:", "completion": " yes"}, *forms])
    answer = run("predict", out, "--input", tmp_path / "new.jsonl", "--output", tmp_path / "said.jsonl")
    assert answer.exit_code == 0
    said = read_rows(tmp_path / "said.jsonl")
    assert len(said) == 3
    for row in said:
        assert row["log_prob"] < 0
        assert row["num_tokens"] == len(row["token_log_probs"]) == len(row["mutual_information"])
        assert set(row) > {name for name in task_family("language_model").output_columns if "point" not in name}
    write_jsonl(tmp_path / "new.jsonl", [{"prompt": "Answer:"}])
    with pytest.raises(DataError, match="row 1 has a prompt and no 'completion'"):
        run("predict", out, "--input", tmp_path / "new.jsonl")
