"""The fused LoRA layer against PEFT's own forward pass, and when it steps aside."""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

import bayes_lora.fused as fused
from bayes_lora.adapters import find_adapters, unwrap
from bayes_lora.fused import FusedLoraLinear, unfuse
from bayes_lora.inference import ItemizedELBO
from tests.networks import Batch, build_network, build_pair


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def loss_and_gradients(batch: Batch, *, plain: bool, network: Any = None, **config: Any) -> dict[str, Tensor]:
    """Of one loss at one seed; `plain` gives the layers PEFT's forward pass back."""
    network = copy.deepcopy(network) if network is not None else build_network()
    model, guide = build_pair(network, **{"sample_scale": 0.3, "kl_weight": 0.01} | config)
    if plain:
        for adapter in model.sites.adapters:
            unfuse(adapter.layer)
    torch.manual_seed(0)
    loss = ItemizedELBO().differentiable_loss(model.train(), guide, **batch)
    loss.backward()
    return {"loss": loss.detach(), **gradients(model, guide)}


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    apply = fused._Product.apply

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return apply(*arguments)  # type: ignore[no-any-return,no-untyped-call]

    monkeypatch.setattr(fused._Product, "apply", counted)
    return calls


CASES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "paper": lambda: (build_network(), {}),
    "elbo": lambda: (build_network(), {"objective": "elbo", "num_train_examples": 9, "kl_weight": None}),
    "explicit": lambda: (build_network(), {"sampler": "explicit"}),
    "all linear": lambda: (build_network(target_modules=["query", "key", "value", "dense"]), {}),
    "mean frozen": lambda: (_frozen(build_network(), "lora_A"), {}),
    "B frozen": lambda: (_frozen(build_network(), "lora_B"), {}),
    "all frozen": lambda: (build_network().requires_grad_(False), {}),
    "embeddings trained": lambda: (_trained(build_network(), "embeddings"), {}),
    "float32": lambda: (build_network(dtype=torch.float32), {}),
}


def _frozen(network: Any, part: str) -> Any:
    for name, parameter in network.named_parameters():
        if part in name:
            parameter.requires_grad_(False)
    return network


def _trained(network: Any, part: str) -> Any:
    for name, parameter in network.named_parameters():
        if part in name:
            parameter.requires_grad_(True)
    return network


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_peft(batch: Batch, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    network, config = CASES[case]()
    expected = loss_and_gradients(batch, plain=True, network=network, **config)
    calls = count(monkeypatch)
    found = loss_and_gradients(batch, plain=False, network=network, **config)
    assert len(calls) == len(find_adapters(unwrap(network)))
    assert found.keys() == expected.keys()
    assert "scale_r4_unconstrained" in found
    tolerance = 2e-5 if case == "float32" else 1e-10
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max().clamp_min(1e-3), name


def test_the_product_by_finite_differences() -> None:
    torch.manual_seed(0)
    sizes = [(2, 3, 5), (2, 5), (2, 5), (4, 2)]
    tensors = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    base, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    for shift in (bias, None):
        assert torch.autograd.gradcheck(
            lambda *arguments, shift=shift: fused._Product.apply(*arguments, base, shift, 0.7),  # type: ignore[no-untyped-call]
            tensors,
        )
    x, mean, noise, expand = tensors
    expected = x @ base.T + bias + 0.7 * (x @ (mean + noise).T) @ expand.T
    torch.testing.assert_close(fused._Product.apply(x, mean, noise, expand, base, bias, 0.7), expected)  # type: ignore[no-untyped-call]


def _hook(network: Any) -> None:
    for module in network.modules():
        if isinstance(module, FusedLoraLinear):
            module.base_layer.register_forward_hook(lambda module, args, output: 2 * output)


def _bias(network: Any) -> None:
    for module in network.modules():
        if isinstance(module, FusedLoraLinear):
            module.base_layer.weight.requires_grad_(True)


@pytest.mark.parametrize(
    ("lora", "change"),
    [
        ({"lora_dropout": 0.5}, None),
        ({"lora_bias": True}, None),
        ({}, _hook),
        ({}, _bias),
    ],
    ids=["dropout", "bias of B", "a hook", "a trained base weight"],
)
def test_it_steps_aside_where_there_is_more_to_do(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any], change: Callable[[Any], None] | None
) -> None:
    calls = count(monkeypatch)
    results = []
    for plain in (True, False):
        model, guide = build_pair(build_network(**lora), sample_scale=0.3)
        if change is not None:
            change(model.network)
        if plain:
            for adapter in model.sites.adapters:
                unfuse(adapter.layer)
        torch.manual_seed(0)
        loss = ItemizedELBO().differentiable_loss(model.train(), guide, **batch)
        loss.backward()
        results.append({"loss": loss.detach(), **gradients(model, guide)})
    assert not calls
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_autocast_steps_aside(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count(monkeypatch)
    model, guide = build_pair(build_network(dtype=torch.float32), sample_scale=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ItemizedELBO().differentiable_loss(model, guide, **batch)
    assert not calls


def test_dropout_in_evaluation_does_not(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count(monkeypatch)
    model, guide = build_pair(build_network(lora_dropout=0.5), sample_scale=0.3)
    ItemizedELBO().differentiable_loss(model.eval(), guide, **batch)
    assert len(calls) == len(model.sites.adapters)


def test_the_layers_are_pefts_in_all_but_class(batch: Batch) -> None:
    network = build_network()
    before, expected = set(network.state_dict()), network(**batch).logits
    model, _ = build_pair(network)
    layers = [adapter.layer for adapter in model.sites.adapters]
    assert {type(layer) for layer in layers} == {FusedLoraLinear}
    assert all(isinstance(layer, LoraLinear) for layer in layers)
    assert set(network.state_dict()) == before
    assert torch.equal(network(**batch).logits, expected)
    merged = copy.deepcopy(network).merge_and_unload()
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
    assert {type(layer) for layer in layers} == {FusedLoraLinear}
    assert isinstance(unwrap(network), peft.PeftModel)
    assert {type(layer) for layer in layers} == {LoraLinear}
