"""A posterior over the LoRA of bare parameters: all experts of a layer, the router, a weight of two dimensions."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    MixtralConfig,
    MixtralForSequenceClassification,
    Qwen3MoeConfig,
    Qwen3MoeForSequenceClassification,
)

import bayes_lora as bl
from bayes_lora.adapters import find_adapters, unwrap
from bayes_lora.errors import AdapterError, UnsupportedAdapterError
from bayes_lora.inference import (
    FitOptions,
    ItemizedELBO,
    MonteCLoRAGuide,
    fit,
    load_posterior,
    predict,
    save_posterior,
)
from bayes_lora.inference.predictors.laplace.linears import select_linears
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_pair, learnable_rows

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS = pytest.mark.parametrize("kind", ["mixtral", "qwen3"])
NUM_EXPERTS, RANK = 4, 2


def build_base(kind: str) -> Any:
    """A random mixture of four experts, of which two are used for a token, in two layers."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_labels": 3,
        "pad_token_id": 0,
    }
    if kind == "mixtral":
        return MixtralForSequenceClassification(MixtralConfig(**sizes, num_local_experts=NUM_EXPERTS))
    experts: dict[str, Any] = {
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "head_dim": 8,
    }
    return Qwen3MoeForSequenceClassification(Qwen3MoeConfig(**sizes, **experts))


def build_experts(kind: str, **options: Any) -> Any:
    """That, with LoRA; B is not zero, so that A matters."""
    settings: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": EXPERTS} | options
    config = peft.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=4, **settings)
    base = build_base(kind)
    base.set_experts_implementation("eager")  # the default's kernel takes no double precision
    network = peft.get_peft_model(base, config).double().eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return network


def noises_of(model: BayesianLoRA) -> list[Tensor]:
    return [torch.randn(len(g), g.rank, g.in_features).double() for g in model.sites.groups]


def inputs_of(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}


@KINDS
def test_experts_stand_below_each_other(kind: str) -> None:
    network = build_experts(kind)
    names = {adapter.name: (adapter.rank, adapter.in_features) for adapter in find_adapters(network)}
    inner = 24 if kind == "mixtral" else 8
    layer = "model.layers.1.mlp.experts."
    assert names[layer + "gate_up_proj"] == (NUM_EXPERTS * RANK, 16)
    assert names[layer + "down_proj"] == (NUM_EXPERTS * RANK, inner)
    assert names["model.layers.1.self_attn.q_proj"] == (RANK, 16)
    assert len(names) == 6


@KINDS
def test_the_network_under_a_draw_has_that_draw_as_its_weights(kind: str, batch: Batch) -> None:
    """All layers at once, against a copy whose LoRA-A weights were changed by hand."""
    network = build_experts(kind)
    by_hand = copy.deepcopy(network)
    model, _ = build_pair(network)
    noises = noises_of(model)
    plain = network(**batch).logits
    with torch.no_grad():
        for adapter, noise in zip(find_adapters(by_hand), [one for of in noises for one in of], strict=True):
            adapter.linear.weight += noise
        with model.perturbed(noises):
            found = model.network_logits(batch)
        torch.testing.assert_close(found, by_hand(**batch).logits, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(found, plain, atol=1e-2)
        assert torch.equal(model.network(**batch).logits, plain)
        merged = by_hand.merge_and_unload()
        torch.testing.assert_close(found, merged(**batch).logits, rtol=1e-8, atol=1e-10)


@KINDS
def test_each_expert_sees_its_own_share(kind: str, batch: Batch) -> None:
    """Noise on the rows of one expert alone, against W_e + s B_e (A_e + P_e) put into the base by hand."""
    network = build_experts(kind)
    model, _ = build_pair(network)
    by_hand = unwrap(copy.deepcopy(network))
    name, expert = "model.layers.0.mlp.experts.down_proj", 2
    place = model.sites.names.index(name)
    group = next(group for group in model.sites.groups if group.start <= place < group.stop)
    noises = [torch.zeros_like(noise) for noise in noises_of(model)]
    noise = torch.randn(RANK, group.in_features).double()
    rows = slice(expert * RANK, (expert + 1) * RANK)
    noises[model.sites.groups.index(group)][place - group.start, rows] = noise
    layer = model.sites.adapters[place].layer
    # PEFT has the columns of B by rank first, then by expert.
    expand = layer.lora_B["default"].weight.detach()[:, expert::NUM_EXPERTS]
    experts: Any = by_hand.get_submodule("base_model.model.model.layers.0.mlp.experts.base_layer.base_layer")
    with torch.no_grad():
        experts.down_proj[expert] += layer.scaling["default"] * expand @ noise
        with model.perturbed(noises):
            found = model.network_logits(batch)
        torch.testing.assert_close(found, by_hand(**batch).logits, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # PEFT's own, of "all-linear"
@KINDS
def test_all_linear_takes_experts_and_routers(kind: str, batch: Batch) -> None:
    """A router's weight has two dimensions, so it is one expert."""
    network = build_experts(kind, target_modules="all-linear", target_parameters=None)
    by_hand = copy.deepcopy(network)
    model, guide = build_pair(network)
    assert any("experts.down_proj" in name for name in model.sites.names)
    noises = noises_of(model)
    with torch.no_grad():
        for adapter, noise in zip(find_adapters(by_hand), [one for of in noises for one in of], strict=True):
            adapter.linear.weight += noise
        with model.perturbed(noises):
            torch.testing.assert_close(model.network_logits(batch), by_hand(**batch).logits, rtol=1e-10, atol=1e-12)
    ItemizedELBO()(model, guide)(**batch).backward()
    assert all(adapter.linear.weight.grad is not None for adapter in model.sites.adapters)


def test_without_noise_it_is_peft_bit_for_bit(batch: Batch) -> None:
    network = build_experts("mixtral")
    expected = network(**batch).logits
    model, guide = build_pair(network, sample_scale=0.0)
    assert torch.equal(predict(model, guide, [batch], num_samples=2).logits[1], expected)
    unwrap(network)
    wrapper = peft.tuners.lora.layer.ParamWrapper
    assert {type(adapter.layer) for adapter in model.sites.adapters} == {wrapper, peft.tuners.lora.layer.Linear}


def test_gradients_are_those_of_the_drawn_network(batch: Batch) -> None:
    """Of mean, noise and LoRA-B, against PEFT's own on a copy that has the draw as its weights."""
    network = build_experts("mixtral")
    by_hand = copy.deepcopy(network)
    model, _ = build_pair(network)
    noises = [noise.requires_grad_() for noise in noises_of(model)]
    flat = [one for of in noises for one in of]
    with torch.no_grad():
        for adapter, noise in zip(find_adapters(by_hand), flat, strict=True):
            adapter.linear.weight += noise
    by_hand(**batch).loss.backward()
    with model.perturbed(noises):
        torch.nn.functional.cross_entropy(model.network_logits(inputs_of(batch)), batch["labels"]).backward()
    of_noise = [one for of in noises if of.grad is not None for one in of.grad]
    for ours, theirs, noise in zip(model.sites.adapters, find_adapters(by_hand), of_noise, strict=True):
        expected = theirs.linear.weight.grad
        assert expected is not None
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours.linear.weight.grad, expected, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(noise, expected, rtol=1e-8, atol=1e-11)
        grads = [of.layer.lora_B["default"].weight.grad for of in (ours, theirs)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-11)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")
def test_checkpointing_recomputes_with_the_same_experts(batch: Batch) -> None:
    found = []
    for checkpointing in (False, True):
        network = build_experts("mixtral").train()
        if checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model, guide = build_pair(network, sample_scale=0.3)
        torch.manual_seed(0)
        ItemizedELBO().differentiable_loss(model, guide, **batch).backward()
        found.append([adapter.linear.weight.grad for adapter in model.sites.adapters])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.shows("architecture", "works", {"mixtral": "Mixtral", "qwen3": "Qwen3 MoE"})
@pytest.mark.shows("adapter", "works", "experts and other bare parameters (`target_parameters`)")
@KINDS
def test_fitted_saved_and_opened_again(kind: str, tmp_path: Path, batch: Batch) -> None:
    network = build_experts(kind).float()
    model = BayesianLoRA(network, bl.MonteCLoRAConfig(sample_scale=0.1))
    guide = MonteCLoRAGuide(model)
    before = {adapter.name: adapter.mean.clone() for adapter in model.sites.adapters}
    fit(model, guide, learnable_rows(16), FitOptions(epochs=1, batch_size=8, learning_rate=1e-2))
    assert all(not torch.equal(adapter.mean, before[adapter.name]) for adapter in model.sites.adapters)
    again = load_posterior(build_base(kind), save_posterior(model, guide, tmp_path / "posterior"))
    one, other = (predict(*of, [batch], num_samples=3).logits for of in ((model, guide), again))
    torch.testing.assert_close(one, other)
    assert one.std(0).max() > 0


def test_draws_do_not_share_a_pass(batch: Batch) -> None:
    model, guide = build_pair(build_experts("mixtral"), sample_scale=0.3)
    assert predict(model, guide, [batch], num_samples=4).logits.shape == (4, 5, 3)
    with pytest.raises(AdapterError, match=r"experts\.\w+: a pass has one weight .* draws_per_pass=1"):
        predict(model, guide, [batch], num_samples=4, draws_per_pass=2)


def test_laplace_is_not_of_bare_parameters() -> None:
    network = build_experts("mixtral")
    with pytest.raises(UnsupportedAdapterError, match=r"a bare parameter's.*drop target_parameters"):
        select_linears(network, "all")
