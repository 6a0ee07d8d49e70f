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
from bayes_lora.inference import (
    FitOptions,
    MonteCLoRAGuide,
    fit,
    fit_network,
    load_posterior,
    predict,
    save_posterior,
)
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


def sound_rows() -> list[dict[str, Any]]:
    samples = torch.randn(12, 800, generator=torch.Generator().manual_seed(0))
    return [{"input_values": recording, "labels": i % 3} for i, recording in enumerate(samples)]


# Of images and of sound: the class of the network, its configuration, and what is adapted besides attention.
OTHER: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "vit": (
        "ViTForImageClassification",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "image_size": 8, "patch_size": 4},
        ["q_proj", "v_proj", "query", "value"],  # older transformers say query and value
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "image_size": 8,
         "layer_scale_init_value": 1.0},
        ["pwconv1", "pwconv2"],
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        ["convolution"],
    ),
    "wav2vec2": (
        "Wav2Vec2ForSequenceClassification",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8},
        ["q_proj", "v_proj"],
    ),
}  # fmt: skip


def build_other(name: str) -> Any:
    torch.manual_seed(0)
    kind, options, _ = OTHER[name]
    network = getattr(transformers, kind)
    return network(network.config_class(**options, num_labels=3))


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


@pytest.mark.shows(
    "architecture",
    "works",
    {
        "bert": "BERT",
        "roberta": "RoBERTa",
        "distilbert": "DistilBERT",
        "deberta-v2": "DeBERTa v2",
        "gpt2": "GPT-2",
        "llama": "LLaMA",
        "t5": "T5",
        "xlnet": "XLNet",
    },
)
# torch: DeBERTa's attention is compiled with the deprecated scripting.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", TEXT)
def test_text_classifiers(name: str, tmp_path: Path) -> None:
    lora = {"task_type": "SEQ_CLS", "target_modules": TEXT[name][2], "fan_in_fan_out": name == "gpt2"}
    if name == "distilbert":
        lora["modules_to_save"] = ["pre_classifier", "classifier"]
    check(lambda: build_text(name), text_rows(name), lora, tmp_path / "posterior")


@pytest.mark.shows(
    "architecture", "works", {"vit": "ViT", "convnext": "ConvNeXt", "resnet": "ResNet", "wav2vec2": "wav2vec 2.0"}
)
@pytest.mark.parametrize(
    ("name", "convolutions"),
    [
        pytest.param("vit", [], id="vit"),
        pytest.param("vit", ["projection"], id="vit, and the convolution of its patches"),
        pytest.param("convnext", [], id="convnext"),
        pytest.param("convnext", ["downsampling_layer.1"], id="convnext, and a downsampling"),
        pytest.param("resnet", [], id="resnet"),
        pytest.param("wav2vec2", [], id="wav2vec2"),
        pytest.param("wav2vec2", ["conv_layers.1.conv"], id="wav2vec2, and a convolution"),
    ],
)
def test_images_and_sound(name: str, convolutions: list[str], tmp_path: Path) -> None:
    head = ["projector", "classifier"] if name == "wav2vec2" else ["classifier"]
    lora = {"target_modules": [*OTHER[name][2], *convolutions], "modules_to_save": head}
    rows = sound_rows() if name == "wav2vec2" else image_rows()
    check(lambda: build_other(name), rows, lora, tmp_path / "posterior")


def test_dora(tmp_path: Path) -> None:
    lora = {"target_modules": "all-linear", "task_type": "SEQ_CLS", "use_dora": True}
    check(lambda: build_text("bert"), text_rows("bert"), lora, tmp_path / "posterior")


def test_running_statistics_stay_those_of_the_base_model() -> None:
    """Else what is saved, which has none, would be another network; PEFT alone does move them."""
    fresh = build_other("resnet")
    before = {name: value.clone() for name, value in fresh.named_buffers()}
    assert any("running_mean" in name for name in before)
    lora = peft.LoraConfig(r=4, target_modules=["convolution"], modules_to_save=["classifier"])
    network = peft.get_peft_model(fresh, lora)
    fit_network(network, image_rows(), FitOptions(epochs=1, batch_size=4))
    model = BayesianLoRA(network, bl.MonteCLoRAConfig())
    fit(model, MonteCLoRAGuide(model), image_rows(), FitOptions(epochs=1, batch_size=4))
    model.train()
    batch = torch.utils.data.default_collate(image_rows())
    model(**batch)

    def moved() -> list[str]:
        plain = {name.removeprefix("base_model.model."): value for name, value in network.named_buffers()}
        return [name for name, value in before.items() if not value.equal(plain[name])]

    assert moved() == []
    network.train()
    network(**batch)
    assert moved()
