"""A small file of rows, a run fitted on it, two tiny built-in tasks, and a tiny base model without a head."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from bayes_lora.experiments.demo.digits import make_digits
from bayes_lora.experiments.networks.base_models import resolve_base_model
from bayes_lora.experiments.rows.rows import write_jsonl
from bayes_lora.experiments.tasks.embedded_task import make_embedded_task
from tests.experiments.commands import QUICK, fit_arguments, run
from tests.networks import build_llama
from tests.small_tokenizers import byte_pairs


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of sentences in columns a and b, with the class 0 or 1 in column same."""
    task = make_embedded_task(num_train=24, num_validation=4, num_out_of_distribution=4)
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    write_jsonl(path, [{"a": row["sentence1"], "b": row["sentence2"], "same": row["label"]} for row in task.rows.train])
    return path


@pytest.fixture(scope="session")
def fitted(rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run's folder, and what fit printed; tests leave the folder as it is."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = run(*fit_arguments(rows_file), "--out", out, "--json", *QUICK)
    return out, json.loads(result.stdout)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of two blocks and width 32, with the real tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(resolve_base_model("minilm"))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random LLaMA, whose tokenizer pads with its end of a text and can chat."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = byte_pairs()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    build_llama(vocab_size=len(tokenizer), max_positions=512).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files, with a small ViT that has seen half of them once."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    make_digits(folder, epochs=1)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mrpc and rte, 40 and 20 rows of the embedded task's in and out of distribution."""
    folder = tmp_path_factory.mktemp("data")
    task = make_embedded_task(num_train=40, num_validation=12, num_out_of_distribution=14)
    parts = {"mrpc": (task.rows.train, task.rows.validation), "rte": (task.rows.train[:20], task.out_of_distribution)}
    for name, splits in parts.items():
        (folder / name).mkdir()
        for split, rows in zip(("train", "validation"), splits, strict=True):
            lines = [{key: row[key] for key in ("sentence1", "sentence2", "label")} for row in rows]
            with gzip.open(folder / name / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder
