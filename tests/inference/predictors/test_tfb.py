"""TFB: noise that is isotropic in the weight it adds, the search for its scale, and what is refused."""

import math
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from bayes_lora.errors import AdapterError, ConfigurationError, UnsupportedAdapterError
from bayes_lora.inference import TFB, PointEstimate, TFBPredictor, tune_tfb
from bayes_lora.randomness import stream
from tests.networks import Batch, build_bank, build_bert, build_network, make_batch
from tests.statistics import assert_mean, deviation


@pytest.fixture
def batch() -> Batch:
    return make_batch()


def weights_of(network: Any) -> tuple[str, Any, Any]:
    """The first adapter: name of its LoRA-A, LoRA-A, LoRA-B."""
    name, down = next((name, of) for name, of in network.named_parameters() if "lora_A" in name)
    return name, down, dict(network.named_parameters())[name.replace("lora_A", "lora_B")]


def test_noise_is_isotropic_in_the_weight_it_adds() -> None:
    """Cov(vec(B dA)) = (U U') x I, whatever B is: of a column, that of an orthogonal projection."""
    network = build_bank([3], rank=2, out_features=4)
    name, _, up = weights_of(network)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        up.copy_(
            torch.randn(up.shape, generator=generator, dtype=up.dtype) @ torch.tensor([[3.0, 1.0], [0.0, 0.2]]).to(up)
        )
    weights = TFB.of(network)
    noise = torch.stack([up.detach() @ weights.noise(stream(0, draw))[name] for draw in range(3000)])
    left = torch.linalg.qr(up.detach())[0]
    flat = noise.mT.flatten(1)  # column by column
    expected = torch.kron(torch.eye(3, dtype=up.dtype), left @ left.mT)
    assert_mean(flat, torch.zeros(12, dtype=up.dtype))
    products = torch.einsum("si,sj->sij", flat, flat)
    assert_mean(products, expected)
    # Not that of equal deviations of LoRA-A, of the same size together.
    equal = torch.kron(torch.eye(3, dtype=up.dtype), up.detach() @ up.detach().mT)
    assert deviation(products, equal * expected.trace() / equal.trace()).abs().max() > 4


@pytest.mark.parametrize("num_samples", [1, 3, 4])
def test_without_noise_it_is_lora(num_samples: int, batch: Batch) -> None:
    network = build_network()
    expected = PointEstimate(network)([batch]).logits
    found = TFBPredictor(network, 0.0)([batch], num_samples=num_samples)
    assert torch.equal(found.logits, expected.expand(num_samples, -1, -1))
    before = {name: value.clone() for name, value in network.named_parameters()}
    noisy = TFBPredictor(network, 3.0)([batch], num_samples=num_samples)
    assert not torch.allclose(noisy.logits, found.logits, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_a_draw_is_the_network_with_drawn_weights(batch: Batch) -> None:
    network = build_network()
    weights = TFB.of(network)
    found = TFBPredictor(network, 0.3, "independent")([batch], num_samples=2, seed=7)
    for draw in range(2):
        moved = {name: mean + 0.3 * weights.noise(stream(7, draw))[name] for name, mean in weights.mean.items()}
        other = build_network()
        other.load_state_dict(moved, strict=False)
        expected = PointEstimate(other)([batch]).logits[0]
        torch.testing.assert_close(found.logits[draw], expected)


def test_the_found_sigma_is_the_largest_within_the_tolerance(batch: Batch) -> None:
    """By definition, at it and a step beyond."""
    network, seen = build_network(), list[tuple[float, float]]()
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    found = tune_tfb(network, [unlabelled], bounds=(0.1, 100), seed=3, on_step=lambda *pair: seen.append(pair))
    classes = PointEstimate(network)([batch]).mean_probs.argmax(-1)

    def loss(sigma: float) -> float:
        probs = TFBPredictor(network, sigma)([batch], num_samples=10, seed=3).logits.softmax(-1).mean(0)
        return -float(np.mean([math.log(probs[row, kind]) for row, kind in enumerate(classes.tolist())]))

    assert found.loss == pytest.approx(loss(0.0), rel=1e-12)
    assert found.change == pytest.approx(abs(loss(found.sigma) - loss(0)) / loss(0), rel=1e-9)
    assert found.change <= 0.003
    beyond = found.sigma * 1.05
    assert abs(loss(beyond) - loss(0)) / loss(0) > 0.003
    assert found.tried == tuple(sorted(seen))
    assert len(seen) <= 11
    assert not found.at_upper_bound


def test_at_the_ends_of_the_bounds(batch: Batch) -> None:
    network = build_network()
    wide = tune_tfb(network, [batch], tolerance=1e6, bounds=(1e-3, 2e-3))
    assert (wide.sigma, wide.at_upper_bound) == (2e-3, True)
    none = tune_tfb(network, [batch], tolerance=1e-9, bounds=(0.1, 1.0))
    assert (none.sigma, none.change, len(none.tried)) == (0.0, 0.0, 2)


def test_directions_that_b_maps_to_nothing_have_no_noise() -> None:
    network = build_bank([5], rank=3, out_features=2)  # narrower than its rank
    name, _, up = weights_of(network)
    with torch.no_grad():
        up.copy_(torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]))
    noise = TFB.of(network).noise(0)[name]
    assert noise.isfinite().all()
    assert torch.linalg.matrix_rank(noise) == 1
    assert noise[2].abs().max() < 1e-12


def test_refusals(batch: Batch) -> None:
    fresh = peft.get_peft_model(build_bert(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(AdapterError, match="every LoRA-B is 0"):
        TFBPredictor(fresh, 0.1)
    with pytest.raises(UnsupportedAdapterError, match="this is DoRA"):
        TFBPredictor(build_network(use_dora=True), 0.1)
    with pytest.raises(AdapterError, match="no LoRA-A matrix found"):
        TFBPredictor(nn.Linear(2, 2), 0.1)
    network = build_network()
    with pytest.raises(ConfigurationError, match="sigma=-1 must be"):
        TFBPredictor(network, -1)
    with pytest.raises(ConfigurationError, match=r"bounds=\(0, 1\) must be two numbers"):
        tune_tfb(network, [batch], bounds=(0, 1))
    with pytest.raises(ConfigurationError, match="tolerance=0 must be positive"):
        tune_tfb(network, [batch], tolerance=0)
