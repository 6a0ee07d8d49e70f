"""Every kind of LoRA that a LoraConfig can ask for, the whole way: noise, fit, save, load, the mean by PEFT alone."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

import bayes_lora as bl
from bayes_lora.adapters import find_adapters
from bayes_lora.errors import UnsupportedAdapterError
from bayes_lora.inference import FitOptions, fit, load_posterior, predict, save_posterior
from bayes_lora.models import BayesianLoRA
from tests.inference.test_architectures import build_text
from tests.networks import Batch, build_bert, build_network, build_pair, learnable_rows
from tests.posteriors import build_base

KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA with dropout": {"lora_dropout": 0.2},
    "rsLoRA (`use_rslora`)": {"use_rslora": True},
    "`rank_pattern`": {"rank_pattern": {"value": 2}},
    "`alpha_pattern`": {"alpha_pattern": {"value": 3}},
    "`lora_bias`": {"lora_bias": True},
    '`bias="lora_only"`': {"bias": "lora_only"},
    "`layers_to_transform`": {"layers_to_transform": [1]},
    "`exclude_modules`": {"exclude_modules": ["layer.0.attention.self.query"]},
    '`target_modules="all-linear"`': {"target_modules": "all-linear"},
    "`modules_to_save`": {"modules_to_save": ["pooler"]},
    "`trainable_token_indices`": {"trainable_token_indices": [3, 4]},
    "DoRA (`use_dora`)": {"use_dora": True},
    "DoRA and rsLoRA": {"use_dora": True, "use_rslora": True},
    "`init_lora_weights=False`": {"init_lora_weights": False},
    '`init_lora_weights="gaussian"`': {"init_lora_weights": "gaussian"},
    '`init_lora_weights="orthogonal"`': {"init_lora_weights": "orthogonal"},
    '`init_lora_weights="pissa"`': {"init_lora_weights": "pissa"},
    '`init_lora_weights="olora"`': {"init_lora_weights": "olora"},
}


@pytest.mark.shows("adapter", "works", {kind: kind for kind in KINDS})
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_way(kind: str, batch: Batch, tmp_path: Path) -> None:
    starts_from_base = kind in ('`init_lora_weights="pissa"`', '`init_lora_weights="olora"`')
    dtype = torch.float32 if starts_from_base else torch.float64  # PEFT does not take theirs in double precision
    within: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5} if starts_from_base else {"rtol": 1e-9, "atol": 1e-12}
    network = build_network(dtype=torch.float32, **KINDS[kind]).to(dtype)
    by_hand = copy.deepcopy(network)
    model, guide = build_pair(network, sample_scale=0.3)
    noises = [torch.randn(len(g), g.rank, g.in_features, dtype=dtype) for g in model.sites.groups]
    with torch.no_grad():
        for adapter, noise in zip(find_adapters(by_hand), [one for of in noises for one in of], strict=True):
            adapter.linear.weight += noise
        with model.perturbed(noises):
            torch.testing.assert_close(model.network_logits(batch), by_hand(**batch).logits, **within)
    before = [adapter.mean.clone() for adapter in model.sites.adapters]
    fit(model, guide, learnable_rows(16), FitOptions(epochs=1, batch_size=8, learning_rate=1e-2))
    assert not any(torch.equal(adapter.mean, old) for adapter, old in zip(model.sites.adapters, before, strict=True))
    folder = save_posterior(model, guide, tmp_path / "posterior")
    again = load_posterior(build_base().to(dtype), folder)
    wanted: list[dict[str, Any]] = [{"num_samples": 3}, {"at_mean": True}]
    for options in wanted:
        one, other = (predict(*of, [batch], **options).logits for of in ((model, guide), again))
        torch.testing.assert_close(other, one, **within)
    alone = peft.PeftModel.from_pretrained(build_base().to(dtype), folder).eval()
    torch.testing.assert_close(alone(**batch).logits, one[0], **within)


@pytest.mark.shows("adapter", "works", '`init_lora_weights="eva"`, of data')
@pytest.mark.filterwarnings("ignore:lora with eva initialization")  # it asks for less memory
def test_eva(batch: Batch, tmp_path: Path) -> None:
    """Ranks are given where the data vary most, and are no longer those of the configuration at first."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules=["query", "output.dense"],
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0),
    )
    network = peft.get_peft_model(build_base().float(), config)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    peft.initialize_lora_eva_weights(network, [inputs] * 8, show_progress_bar=False)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    model, guide = build_pair(network.eval(), sample_scale=0.3)
    assert len({adapter.rank for adapter in model.sites.adapters}) > 1
    again = load_posterior(build_base().float(), save_posterior(model, guide, tmp_path / "posterior"))
    one, other = (predict(*of, [batch], num_samples=3).logits for of in ((model, guide), again))
    torch.testing.assert_close(one, other)


@pytest.mark.shows("adapter", "works", "`layer_replication`")
def test_repeated_layers_have_posteriors_of_their_own(batch: Batch, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)], init_lora_weights=False
    )
    network = peft.get_peft_model(build_text("llama"), config).eval()
    model, guide = build_pair(network, sample_scale=0.3)
    assert model.sites.names == tuple(f"model.layers.{layer}.self_attn.q_proj" for layer in range(3))
    again = load_posterior(build_text("llama"), save_posterior(model, guide, tmp_path / "posterior"))
    one, other = (predict(*of, [batch], num_samples=3).logits for of in ((model, guide), again))
    torch.testing.assert_close(one, other)


def corda(batch: Batch) -> Any:
    base = build_bert()
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights="corda", corda_config=CordaConfig())
    row = {name: value[:1] for name, value in batch.items()}  # it takes one at a time
    preprocess_corda(base, config, run_model=lambda: base(**row))
    return peft.get_peft_model(base, config)


def lora_ga(batch: Batch) -> Any:
    base = build_bert()
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    preprocess_loraga(base, config, lambda: base(**batch).loss.backward())
    return peft.get_peft_model(base, config)


@pytest.mark.shows(
    "adapter",
    "refused",
    {"corda": '`init_lora_weights="corda"`, of data', "lora_ga": '`init_lora_weights="lora_ga"`, of gradients'},
)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of LoRA-GA
@pytest.mark.parametrize("build", [corda, lora_ga])
def test_what_data_put_into_the_base_is_refused(batch: Batch, build: Any) -> None:
    network = build(batch)
    with pytest.raises(UnsupportedAdapterError, match=rf"init_lora_weights='{build.__name__}'.*are not saved"):
        BayesianLoRA(network, bl.MonteCLoRAConfig())
