"""The scale of the noise can be changed, for all adapters or for each, and stays what it is set to."""

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import build_network, build_pair, make_batch

PAPER: dict[str, Any] = {"sample_scale": 0.1}
CASES: list[dict[str, Any]] = [
    PAPER,
    {**PAPER, "sampler": "explicit"},
    {**PAPER, "mixture": "sparse"},
    {**PAPER, "mixture": "sparse", "sampler": "explicit"},
    {**PAPER, "num_outer_samples": 2},
    {"sample_scale": 0.1, "objective": "elbo", "num_train_examples": 9},
]


def draw(model: BayesianLoRA, guide: MonteCLoRAGuide) -> list[torch.Tensor]:
    """The perturbation of every adapter under the draw of seed 0."""
    pyro.set_rng_seed(0)
    trace = poutine.trace(guide).get_trace()
    latents = poutine.replay(model.sample_latents, trace=trace)()
    return [noise for group in model.perturbations(latents) for noise in group]


@pytest.mark.parametrize("config", CASES)
def test_each_adapter_has_its_own(config: dict[str, Any]) -> None:
    model, guide = build_pair(**config)
    before = draw(model, guide)
    factors = torch.linspace(0.5, 2, len(before), dtype=torch.float64)
    model.set_sample_scale(0.1 * factors)
    for noise, old, factor in zip(draw(model, guide), before, factors, strict=True):
        torch.testing.assert_close(noise, factor * old)


def test_one_number_is_for_all() -> None:
    model, guide = build_pair(**PAPER)
    before = draw(model, guide)
    model.set_sample_scale(0.3)
    for noise, old in zip(draw(model, guide), before, strict=True):
        torch.testing.assert_close(noise, 3 * old)
    assert model.config.sample_scale == 0.1


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), torch.ones(3), torch.tensor([1.0, 1, -1, 1])])
def test_refused(scale: float | torch.Tensor) -> None:
    model, _ = build_pair(**PAPER)
    with pytest.raises(ConfigurationError, match="must be one finite number of at least 0, or 4 of them"):
        model.set_sample_scale(scale)
    assert model.sample_scale.eq(0.1).all()


def test_zero_is_refused_where_the_kl_would_be_infinite() -> None:
    model, _ = build_pair(**CASES[-1])
    with pytest.raises(ConfigurationError, match="one finite number above 0"):
        model.set_sample_scale(0.0)


def test_keeps_its_precision_when_the_network_is_cast() -> None:
    model, _ = build_pair(build_network(dtype=torch.float32), **PAPER)
    model.to(torch.bfloat16)
    assert model.sample_scale.dtype == torch.float32
    assert model.sample_scale.eq(0.1).all()
    assert model.to(torch.float64).sample_scale.dtype == torch.float64
    assert torch.isfinite(model(**make_batch())).all()
