"""Fit, predict, save and load on the architectures people fine-tune: small random networks of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

import bayes_lora as bl
from bayes_lora.inference import FitOptions, MonteCLoRAGuide, fit, load_posterior, predict, save_posterior
from bayes_lora.models import BayesianLoRA

SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
TEXT: dict[str, tuple[str, dict[str, Any], list[str] | str]] = {
    "bert": ("BertConfig", {**SMALL, "intermediate_size": 24}, "all-linear"),
    "roberta": ("RobertaConfig", {**SMALL, "intermediate_size": 24}, ["query", "key", "value"]),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": 60, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "num_labels": 3},
        ["q_lin", "v_lin"],
    ),
    "deberta-v2": (
        "DebertaV2Config",
        {
            **SMALL,
            "intermediate_size": 24,
            "relative_attention": True,
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
        },
        ["query_proj", "key_proj"],
    ),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_labels": 3, "pad_token_id": 0},
        ["c_attn", "c_proj"],
    ),
    "llama": (
        "LlamaConfig",
        {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1, "pad_token_id": 0},
        ["q_proj", "v_proj", "down_proj"],
    ),
    "t5": (
        "T5Config",
        {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "num_labels": 3,
         "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
        ["q", "v"],
    ),
    "xlnet": (
        "XLNetConfig",
        {"vocab_size": 60, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "num_labels": 3},
        "all-linear",
    ),
}  # fmt: skip


def text_rows(name: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 60, (12, 6), generator=generator)
    if name == "t5":
        tokens[:, -1] = 1  # its classifier reads the end-of-sequence token
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": i % 3} for i, row in enumerate(tokens)]


def image_rows() -> list[dict[str, Any]]:
    pixels = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(pixels)]


def build_text(name: str) -> Any:
    torch.manual_seed(0)
    kind, options, _ = TEXT[name]
    return AutoModelForSequenceClassification.from_config(getattr(transformers, kind)(**options))


def build_vit() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(  # type: ignore[call-arg]
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


def check(build: Callable[[], Any], rows: list[dict[str, Any]], lora: dict[str, Any], folder: Path) -> None:
    network = peft.get_peft_model(build(), peft.LoraConfig(r=4, **lora))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)  # at zero, A would not matter
    model = BayesianLoRA(network, bl.MonteCLoRAConfig(sample_scale=0.3))
    guide = MonteCLoRAGuide(model)
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in fit(
        model, guide, rows, FitOptions(epochs=2, batch_size=4, learning_rate=1e-2)
    ).history)  # fmt: skip
    loader = torch.utils.data.DataLoader(rows, batch_size=5)  # type: ignore[arg-type,var-annotated]
    prediction = predict(model, guide, loader, num_samples=4)
    one_by_one = predict(model, guide, loader, num_samples=4, draws_per_pass=1)
    torch.testing.assert_close(prediction.logits, one_by_one.logits, rtol=1e-4, atol=1e-5)
    assert prediction.logits.std(0).max() > 1e-5  # the noise reaches the output
    save_posterior(model, guide, folder)
    loaded = predict(*load_posterior(build(), folder), loader, num_samples=4)
    assert torch.equal(loaded.logits, prediction.logits)


# torch: DeBERTa's attention is compiled with the deprecated scripting.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", TEXT)
def test_text_classifiers(name: str, tmp_path: Path) -> None:
    lora = {"task_type": "SEQ_CLS", "target_modules": TEXT[name][2], "fan_in_fan_out": name == "gpt2"}
    if name == "distilbert":
        lora["modules_to_save"] = ["pre_classifier", "classifier"]
    check(lambda: build_text(name), text_rows(name), lora, tmp_path / "posterior")


@pytest.mark.parametrize("patches", [[], ["projection"]], ids=["attention", "and the convolution of the patches"])
def test_image_classifiers(tmp_path: Path, patches: list[str]) -> None:
    # older transformers say query and value
    lora = {"target_modules": ["q_proj", "v_proj", "query", "value", *patches], "modules_to_save": ["classifier"]}
    check(build_vit, image_rows(), lora, tmp_path / "posterior")


def test_dora(tmp_path: Path) -> None:
    lora = {"target_modules": "all-linear", "task_type": "SEQ_CLS", "use_dora": True}
    check(lambda: build_text("bert"), text_rows("bert"), lora, tmp_path / "posterior")
