"""MC dropout: the masks are those of LoRA's dropout and of nothing else, seeded, and gone afterwards."""

from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from bayes_lora.errors import AdapterError, ConfigurationError
from bayes_lora.inference.predictors.mc_dropout import MCDropout
from bayes_lora.inference.predictors.point_estimate import PointEstimate
from bayes_lora.randomness import stream
from tests.networks import Batch, build_bert, build_network, build_pair
from tests.statistics import assert_mean, deviation


def dropouts(network: nn.Module) -> list[tuple[nn.Module, bool, float | None]]:
    return [
        (module, module.training, getattr(module, "p", None))
        for layer in network.modules()
        if isinstance(layer, LoraLayer)
        for module in layer.lora_dropout.values()
    ]


def by_hand(network: nn.Module, batch: Batch, seed: int, num_samples: int) -> Tensor:
    """The obvious way for a network built with lora_dropout: its dropout modules alone in training mode."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    network.eval()
    for module, _, _ in dropouts(network):
        module.train()
    found = []
    for draw in range(num_samples):
        torch.manual_seed(stream(stream(seed, draw), 0))
        with torch.no_grad():
            found.append(network(**inputs).logits)
    network.eval()
    return torch.stack(found)


def test_draws_are_those_by_hand(batch: Batch) -> None:
    network = build_network(dropout=0.5, lora_dropout=0.3)
    expected = by_hand(network, batch, seed=3, num_samples=4)
    network.train()
    assert torch.equal(MCDropout(network)([batch], num_samples=4, seed=3).logits, expected)
    assert expected.std(0).min() > 1e-8  # rounding is 1e-16


def test_given_a_probability_the_training_does_not_matter(batch: Batch) -> None:
    trained_with = [MCDropout(build_network(lora_dropout=p), 0.3)([batch], num_samples=3) for p in (0.0, 0.1, 0.3)]
    own = MCDropout(build_network(lora_dropout=0.3))([batch], num_samples=3)
    assert all(torch.equal(prediction.logits, own.logits) for prediction in trained_with)


@pytest.mark.parametrize("lora_dropout", [0.0, 0.3])
@pytest.mark.parametrize("use_dora", [False, True])
def test_probability_0_is_the_point_estimate(batch: Batch, lora_dropout: float, use_dora: bool) -> None:
    network = build_network(lora_dropout=lora_dropout, use_dora=use_dora)
    found = MCDropout(network, 0.0)([batch], num_samples=3)
    point = PointEstimate(network)([batch])
    assert torch.equal(found.logits, point.logits.expand(3, -1, -1))
    assert not torch.equal(MCDropout(network, 0.1)([batch], num_samples=1).logits, point.logits)


def test_the_masks_keep_the_mean_of_a_lora_layer() -> None:
    """E[B A (m * x) / (1 - p)] = B A x, with variance p / (1 - p) sum_i (B A)_i^2 x_i^2."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.linear(x),)

    torch.manual_seed(0)
    network = peft.get_peft_model(Head(), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["linear"]))
    network = network.double()
    nn.init.normal_(network.base_model.model.linear.lora_B["default"].weight)
    x = torch.randn(1, 6, dtype=torch.float64)
    rows = x.expand(4000, -1)  # every row has a mask of its own
    [draws] = MCDropout(network, 0.25)([{"x": rows}], num_samples=1).logits
    point = PointEstimate(network)([{"x": x}]).logits[0, 0]
    layer = network.base_model.model.linear
    product = 2 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    variance = 0.25 / 0.75 * (product.square() * x.square()).sum(-1)
    assert_mean(draws, point)
    assert_mean((draws - point).square(), variance)
    assert deviation((draws - point).square(), 1.5 * variance).abs().min() > 4  # another p would be noticed


def test_seeds_samples_and_batches(batch: Batch) -> None:
    predictor = MCDropout(build_network(lora_dropout=0.3))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    many = predictor([batch, batch], num_samples=5, seed=2).logits
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(predictor([batch, batch], num_samples=3, seed=2).logits, many[:3])
    other = predictor([batch, batch], num_samples=5, seed=3).logits
    assert not any(torch.allclose(a, b) for a in many for b in other)
    # The same rows in the second batch get masks of their own.
    first, second = many.split(5, dim=1)
    assert not any(torch.allclose(a, b) for a in first for b in second)


@pytest.mark.parametrize("lora_dropout", [0.0, 0.3])
def test_the_network_is_left_as_it_was(batch: Batch, lora_dropout: float) -> None:
    network = build_network(lora_dropout=lora_dropout)
    network.train()
    network.get_submodule("base_model.model.bert.encoder.layer.0").eval()
    modes, before = [module.training for module in network.modules()], dropouts(network)
    predictor = MCDropout(network, 0.2)
    predictor([batch], num_samples=1)
    assert [module.training for module in network.modules()] == modes
    assert dropouts(network) == before
    with pytest.raises(ValueError, match="input_ids"):
        predictor([{"attention_mask": batch["attention_mask"]}])
    assert [module.training for module in network.modules()] == modes
    assert dropouts(network) == before


def test_inside_a_bayesian_lora_it_drops_at_the_mean(batch: Batch) -> None:
    plain = MCDropout(build_network(lora_dropout=0.3))([batch], num_samples=3)
    model, _ = build_pair(build_network(lora_dropout=0.3), sample_scale=0.5)
    assert torch.equal(MCDropout(model.network)([batch], num_samples=3).logits, plain.logits)


@pytest.mark.parametrize("kind", ["dora", "adalora"])
def test_other_lora_layers(batch: Batch, kind: str) -> None:
    if kind == "dora":
        network = build_network(lora_dropout=0.3, use_dora=True)
    else:
        torch.manual_seed(0)
        options: dict[str, Any] = {"target_modules": ["query"], "task_type": "SEQ_CLS", "lora_dropout": 0.3}
        network = peft.get_peft_model(build_bert(), peft.AdaLoraConfig(total_step=10, **options)).double().eval()
        for name, parameter in network.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                nn.init.normal_(parameter)
    logits = MCDropout(network)([batch], num_samples=3).logits
    assert logits.std(0).min() > 1e-8  # rounding is 1e-16
    assert not torch.allclose(MCDropout(network, 0.1)([batch], num_samples=3).logits, logits)


def test_refused(batch: Batch) -> None:
    with pytest.raises(ConfigurationError, match=r"lora_dropout=0, .* pass MCDropout\(network, probability=0\.1\)"):
        MCDropout(build_network())
    for probability in (-0.1, 1.0, float("nan"), True, "0.1"):
        with pytest.raises(ConfigurationError, match=r"probability=.* must be at least 0 and below 1"):
            MCDropout(build_network(), probability)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="BertForSequenceClassification has no active LoRA layers"):
        MCDropout(build_bert(), 0.1)
    predictor = MCDropout(build_network(), 0.1)
    with pytest.raises(ConfigurationError, match="num_samples=0"):
        predictor([batch], num_samples=0)
    with pytest.raises(ConfigurationError, match="seed=-1"):
        predictor([batch], seed=-1)
    predictor.network.merge_adapter()  # type: ignore[operator]
    with pytest.raises(AdapterError, match="the adapter is merged"):
        predictor([batch])
