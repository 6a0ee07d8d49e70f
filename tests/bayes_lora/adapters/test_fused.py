"""The fused LoRA layer against PEFT's own forward pass, and when it steps aside."""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

import bayes_lora.adapters.fused as fused
from bayes_lora.adapters import find_adapters, unwrap
from bayes_lora.adapters.dora import restore_dora
from bayes_lora.adapters.fused import FusedLoraLinear, lora_product, unfuse
from bayes_lora.inference import ItemizedELBO
from tests.networks import Batch, build_network, build_pair


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def loss_and_gradients(
    batch: Batch, *, plain: bool, network: Any, change: Callable[[Any], None] | None = None, **config: Any
) -> dict[str, Tensor]:
    """Of one loss at one seed; `plain` gives layers and magnitudes PEFT's forward pass back."""
    model, guide = build_pair(copy.deepcopy(network), **{"sample_scale": 0.3, "kl_weight": 0.01} | config)
    if change is not None:
        change(model.network)
    if plain:
        for adapter in model.sites.adapters:
            unfuse(adapter.layer)
            restore_dora(adapter.layer)
    torch.manual_seed(0)
    loss = ItemizedELBO().differentiable_loss(model.train(), guide, **batch)
    loss.backward()
    return {"loss": loss.detach(), **gradients(model, guide)}


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the fused path is taken from now on."""
    calls: list[int] = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return lora_product(*arguments)

    monkeypatch.setattr(fused, "lora_product", counted)
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
    "base trained": lambda: (_trained(build_network(), "base_layer"), {}),
    "float32": lambda: (build_network(dtype=torch.float32), {}),
    "DoRA": lambda: (build_network(use_dora=True), {}),
    "DoRA, elbo": lambda: (
        build_network(use_dora=True),
        {"objective": "elbo", "num_train_examples": 9, "kl_weight": None},
    ),
    "DoRA, all linear": lambda: (build_network(use_dora=True, target_modules=["query", "key", "value", "dense"]), {}),
    "DoRA, magnitude frozen": lambda: (_frozen(build_network(use_dora=True), "magnitude"), {}),
    "DoRA, base trained": lambda: (_trained(build_network(use_dora=True), "base_layer"), {}),
    "DoRA, float32": lambda: (build_network(use_dora=True, dtype=torch.float32), {}),
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
    tolerance = 2e-5 if "float32" in case else 1e-10
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max().clamp_min(1e-3), name


@pytest.mark.parametrize("many_rows", [1, 64])
@pytest.mark.parametrize("with_gain", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_product_written_out(
    monkeypatch: pytest.MonkeyPatch, with_bias: bool, with_gain: bool, many_rows: int
) -> None:
    monkeypatch.setattr(fused, "_MANY_ROWS", many_rows)
    torch.manual_seed(0)
    sizes = [(2, 3, 5), (2, 5), (4, 2), (4, 5)]
    x, a, expand, base = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True) if with_bias else None
    gain = torch.randn(4, dtype=torch.float64, requires_grad=True) if with_gain else None
    expected = x @ base.T + 0.7 * (x @ a.T) @ expand.T
    expected = (expected if gain is None else gain * expected) + (0 if bias is None else bias)
    inputs: Any = (x, a, expand, base, bias, 0.7, gain)
    torch.testing.assert_close(lora_product(*inputs), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lora_product, inputs)


def _hook(network: Any) -> None:
    for module in network.modules():
        if isinstance(module, FusedLoraLinear):
            module.base_layer.register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize(
    ("lora", "change"),
    [
        ({"lora_dropout": 0.5}, None),
        ({"lora_bias": True}, None),
        ({}, _hook),
    ],
    ids=["dropout", "bias of B", "a hook"],
)
def test_it_steps_aside_where_there_is_more_to_do(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any], change: Callable[[Any], None] | None
) -> None:
    calls = count(monkeypatch)
    network = build_network(**lora)
    results = [loss_and_gradients(batch, plain=plain, network=network, change=change) for plain in (True, False)]
    assert not calls
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def _relative_error(found: dict[str, Tensor], exact: dict[str, Tensor], name: str) -> float:
    return float((found[name].double() - exact[name]).norm() / exact[name].norm().clamp_min(1e-3))


@pytest.mark.parametrize("use_dora", [False, True])
def test_under_autocast_it_is_as_close_to_the_exact_product_as_peft(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, use_dora: bool
) -> None:
    network = build_network(dtype=torch.float32, use_dora=use_dora)
    exact = {name: value.double() for name, value in loss_and_gradients(batch, plain=True, network=network).items()}
    calls = count(monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_peft = loss_and_gradients(batch, plain=True, network=network)
        assert not calls
        found = loss_and_gradients(batch, plain=False, network=network)
    assert len(calls) == len(find_adapters(unwrap(network)))
    assert all(value.dtype == by_peft[name].dtype for name, value in found.items())
    errors = [(_relative_error(found, exact, name), _relative_error(by_peft, exact, name)) for name in exact]
    assert max(peft for _, peft in errors) > 1e-4  # there is rounding to be seen
    assert all(own < 2 * peft + 1e-3 for own, peft in errors)
    assert sum(own for own, _ in errors) < 1.5 * sum(peft for _, peft in errors)


def test_autocast_leaves_double_precision_to_peft(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count(monkeypatch)
    model, guide = build_pair(build_network(dtype=torch.float64), sample_scale=0.3)
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


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    a, expand, base = torch.zeros(2, 5), torch.zeros(4, 2), torch.zeros(4, 5)
    assert lora_product(torch.zeros(shape), a, expand, base, torch.zeros(4), 1.0).shape == (*shape[:-1], 4)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"target_modules": ["query", "value", "output.dense"]}])
def test_stacked_draws_take_it_where_asked(
    options: dict[str, Any], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for DoRA, whose gain differs from draw to draw."""
    model, guide = build_pair(build_network(**options), sample_scale=0.3)
    inputs = {name: value.repeat(3, 1) for name, value in batch.items() if name != "labels"}
    noises = [model.perturbations(guide()) for _ in range(3)]
    stacked = [torch.stack(groups) for groups in zip(*noises, strict=True)]
    calls = count(monkeypatch)
    with torch.no_grad(), model.perturbed(stacked, num_rows=15):
        model.network_logits(inputs)
    assert not calls
    with torch.no_grad(), model.perturbed(stacked, num_rows=15, fuse_stacks=True):
        found = model.network_logits(inputs)
    assert bool(calls) != ("use_dora" in options)
    for index, noise in enumerate(noises):
        with torch.no_grad(), model.perturbed(noise):
            alone = model.network_logits({name: value[:5] for name, value in inputs.items()})
        torch.testing.assert_close(found[5 * index : 5 * index + 5], alone, rtol=1e-11, atol=1e-12)
    for adapter in model.sites.adapters:
        unfuse(adapter.layer)
    with torch.no_grad(), model.perturbed(stacked, num_rows=15):
        torch.testing.assert_close(model.network_logits(inputs), found, rtol=1e-11, atol=1e-12)
