"""Which LoRA-A matrices are found, under which names, and that wrapping leaves the network what it was."""

import copy
from typing import Any

import peft
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification

import bayes_lora as bl
from bayes_lora.adapters import find_adapters, group_by_shape, unwrap
from bayes_lora.adapters.perturbation import PerturbedLinear
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bank, build_network, build_pair

LAYER = "bert.encoder.layer.{}.attention.self.{}"
CONFIG = bl.MonteCLoRAConfig()


def constant_noise_logits(model: BayesianLoRA, noise: float, batch: Batch) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    perturbations = [torch.full((len(g), g.rank, g.in_features), noise).double() for g in model.sites.groups]
    with torch.no_grad(), model.perturbed(perturbations):
        return model.network_logits(inputs)


def test_names_ranks_and_widths_in_order() -> None:
    network = build_network(target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    adapters = find_adapters(network)
    assert [(a.rank, a.in_features) for a in adapters] == [(2, 16)] * 2 + [(4, 16)] * 4 + [(4, 24)] * 2
    assert [a.name for a in adapters] == [
        LAYER.format(0, "value"),
        LAYER.format(1, "value"),
        LAYER.format(0, "query"),
        "bert.encoder.layer.0.attention.output.dense",
        LAYER.format(1, "query"),
        "bert.encoder.layer.1.attention.output.dense",
        "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.1.output.dense",
    ]
    groups = group_by_shape(adapters)
    assert [(g.suffix, g.start, g.stop) for g in groups] == [
        ("_r2_n16", 0, 2),
        ("_r4_n16", 2, 6),
        ("_r4_n24", 6, 8),
    ]


def test_one_of_two_adapters_is_active(batch: Batch) -> None:
    network = build_network()
    network.add_adapter("other", peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    network.double()
    assert [a.key for a in find_adapters(network)] == ["default"] * 4
    network.set_adapter("other")
    assert [(a.name, a.key, a.rank) for a in find_adapters(network)] == [
        (LAYER.format(0, "query"), "other", 2),
        (LAYER.format(1, "query"), "other", 2),
    ]
    model, guide = build_pair(network)
    ItemizedELBO()(model, guide)(**batch).backward()


def test_two_adapters_active_at_once(batch: Batch) -> None:
    network = build_network(task_type=None)
    network.add_adapter("other", peft.LoraConfig(r=2, target_modules=["query"]))
    network.double().base_model.set_adapter(["default", "other"])
    for name, parameter in network.named_parameters():
        if "lora_B.other" in name:
            nn.init.normal_(parameter)
    assert [a.name for a in find_adapters(network)] == [
        LAYER.format(0, "query") + "[other]",
        LAYER.format(1, "query") + "[other]",
        LAYER.format(0, "query") + "[default]",
        LAYER.format(0, "value"),
        LAYER.format(1, "query") + "[default]",
        LAYER.format(1, "value"),
    ]
    model, _ = build_pair(network)
    mean = constant_noise_logits(model, 0.0, batch)
    for position in range(2):
        noises = [torch.zeros(len(g), g.rank, g.in_features).double() for g in model.sites.groups]
        noises[position] += torch.randn_like(noises[position])
        with torch.no_grad(), model.perturbed(noises):
            assert not torch.allclose(model.network_logits(batch), mean)


def test_conv1d_base_weights(batch: Batch) -> None:
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 3}
    config = GPT2Config(vocab_size=50, n_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=1, **sizes)
    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)
    network = peft.get_peft_model(GPT2ForSequenceClassification(config), lora).double().eval()
    assert [(a.name, a.rank, a.in_features) for a in find_adapters(network)] == [
        ("transformer.h.0.attn.c_attn", 3, 16),
        ("transformer.h.0.mlp.c_proj", 3, 64),
    ]
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    by_hand = copy.deepcopy(network)
    with torch.no_grad():
        for adapter in find_adapters(by_hand):
            adapter.linear.weight += 0.3
    model, guide = build_pair(network, sample_scale=0.3)
    torch.testing.assert_close(constant_noise_logits(model, 0.3, batch), by_hand(**batch).logits)
    ItemizedELBO()(model, guide)(**batch).backward()


def test_every_adapter_gets_its_own_noise(batch: Batch) -> None:
    network = build_network(target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    by_hand = copy.deepcopy(network)
    model, _ = build_pair(network)
    noises = [torch.randn(len(g), g.rank, g.in_features).double() for g in model.sites.groups]
    weights = dict(by_hand.named_parameters())
    with torch.no_grad():
        for name, noise in zip(model.sites.names, [noise for group in noises for noise in group], strict=True):
            weights[f"base_model.model.{name}.lora_A.default.weight"] += noise
        with model.perturbed(noises):
            torch.testing.assert_close(model.network_logits(batch), by_hand(**batch).logits)


@pytest.mark.parametrize("use_dora", [False, True])
def test_wrapping_and_unwrapping_leave_the_network_as_it_was(batch: Batch, use_dora: bool) -> None:
    network = build_network(use_dora=use_dora)
    state, parameters = network.state_dict(), dict(network.named_parameters())
    plain, logits = copy.deepcopy(network), network(**batch).logits
    BayesianLoRA(network, CONFIG)
    assert any(isinstance(module, PerturbedLinear) for module in network.modules())
    assert list(network.state_dict()) == list(state)
    assert torch.equal(network(**batch).logits, logits)
    assert unwrap(network) is network
    assert [type(module) for module in network.modules()] == [type(module) for module in plain.modules()]
    assert all(
        module.training == twin.training for module, twin in zip(network.modules(), plain.modules(), strict=True)
    )
    assert str(network) == str(plain)
    after = dict(network.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in parameters)
    assert torch.equal(network(**batch).logits, logits)
    BayesianLoRA(network, CONFIG)


def test_any_module_with_its_own_likelihood() -> None:
    model = BayesianLoRA(build_bank([5, 6], rank=2), CONFIG, likelihood=lambda logits, labels: None)
    assert model.sites.names == ("layers.0", "layers.1")
    assert set(poutine.trace(MonteCLoRAGuide(model)).get_trace().nodes) >= {"S_r2_n5", "S_r2_n6"}
