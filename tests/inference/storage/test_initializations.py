"""Adapters that PEFT starts from the base weights, and tokens trained beside them: opened again, or refused."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import bayes_lora as bl
from bayes_lora.adapters.initialization import rewrites_base
from bayes_lora.errors import PosteriorFileError, UnsupportedAdapterError
from bayes_lora.inference import load_posterior, predict, save_posterior
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bert, build_network, build_pair

LORA: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "olora, ranks by layer": {"init_lora_weights": "OLoRA", "rank_pattern": {"value": 2}},
    "pissa, another output": {"init_lora_weights": "pissa", "target_modules": ["query", "output.dense"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva", "eva_config": peft.EvaConfig()},
    "tokens": {"trainable_token_indices": [3, 4]},
    "tokens by layer": {"trainable_token_indices": {"word_embeddings": [3, 4, 7]}},
    "tokens and pissa": {"trainable_token_indices": [3], "init_lora_weights": "pissa"},
}


def base(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_bert()


def trained(**lora: Any) -> tuple[BayesianLoRA, Any]:
    network = build_network(dtype=torch.float32, **lora)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return build_pair(network, sample_scale=0.3)


@pytest.mark.filterwarnings("ignore:lora with eva initialization")  # it asks for less memory
@pytest.mark.parametrize("name", LORA)
def test_opened_again_it_predicts_the_same(name: str, batch: Batch, tmp_path: Path) -> None:
    model, guide = trained(**LORA[name])
    torch.manual_seed(1)  # whatever the random numbers are when it is opened
    again = load_posterior(base(), save_posterior(model, guide, tmp_path / "posterior"))
    wanted: list[dict[str, Any]] = [{"num_samples": 4}, {"at_mean": True}]
    for options in wanted:
        before = predict(model, guide, [batch], **options)
        after = predict(*again, [batch], **options)
        torch.testing.assert_close(after.logits, before.logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["pissa", "tokens", "gaussian"])
def test_another_base_is_still_told(name: str, tmp_path: Path) -> None:
    folder = save_posterior(*trained(**LORA[name]), tmp_path / "posterior")
    with pytest.raises(PosteriorFileError, match="was saved for another base model"):
        load_posterior(base(seed=1), folder)


@pytest.mark.parametrize("initialization", ["pissa_niter_4", "pissa_niter_0"])
def test_what_cannot_be_repeated_is_refused_before_training(initialization: str) -> None:
    network = peft.get_peft_model(
        base(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=initialization)
    )
    with pytest.raises(UnsupportedAdapterError, match=rf"init_lora_weights='{initialization}'.*Use 'pissa'"):
        BayesianLoRA(network, bl.MonteCLoRAConfig())


def test_which_initializations_rewrite_the_base() -> None:
    rewriting = [init for init in (True, False, "gaussian", "eva", "pissa", "OLoRA", "loftq") if rewrites_base(init)]
    assert rewriting == ["pissa", "OLoRA", "loftq"]
