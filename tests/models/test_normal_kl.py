"""normal_kl="expected": the same objective as "sampled", without the noise of Sigma in its KL."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from scipy.special import digamma
from torch import Tensor

from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bank, build_network, build_pair
from tests.statistics import assert_mean, assert_same_mean, deviation

PAPER = {"kl_weight": 0.3, "cooperative_weight": 0.7, "sample_scale": 0.4}
ELBO = {"objective": "elbo", "num_train_examples": 20, "kl_temperature": 0.6, "prior_scale": 0.3, "sample_scale": 0.4}
CASES: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "paper, sparse": PAPER | {"mixture": "sparse", "degrees_of_freedom": "in_features"},
    "paper, explicit": PAPER | {"sampler": "explicit"},
    "paper, two outer draws": PAPER | {"num_outer_samples": 2, "degrees_of_freedom": 40.5},
    "paper, explicit, two outer draws": PAPER | {"sampler": "explicit", "num_outer_samples": 2},
    "elbo": ELBO,
    "elbo, sparse": ELBO | {"mixture": "sparse", "degrees_of_freedom": "rank"},
}


def pair(**config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """Ranks 4 and 2, input widths 16 and 24."""
    network = build_network(target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    return build_pair(network, num_components=3, **config)


def expected_normal_kl(v: np.ndarray, nu: float, spread: float, mu: np.ndarray, prior_scale: float) -> float:
    """E KL(N(mu, s^2 Sigma) || N(0, prior_scale^2 I)) over Sigma ~ Wishart(nu, diag v), of one column."""
    r, variance = len(v), prior_scale**2
    log_det = digamma((nu - np.arange(r)) / 2).sum() + r * math.log(2) + np.log(v).sum() + r * math.log(spread**2)
    quadratic = (spread**2 * nu * v.sum() + mu @ mu) / variance
    return float(quadratic - log_det + r * math.log(variance) - r) / 2


def normal_term(model: BayesianLoRA, guide: MonteCLoRAGuide, pi: np.ndarray) -> float:
    """The loss's KL of the noise, as docs/theory.md has it."""
    config, total = model.config, 0.0
    for position, adapter in enumerate(model.sites.adapters):
        rank, nu = adapter.rank, model.sites.degrees_of_freedom[position]
        v = guide.scale(rank)[position - model.sites.ranks[rank].start].detach().numpy()
        if config.objective == "paper":
            total += expected_normal_kl(v, nu, 1.0, np.zeros(rank), 1.0)
        else:
            spread = config.sample_scale * (1.0 if config.mixture == "sparse" else math.sqrt((pi[position] ** 2).sum()))
            columns = adapter.linear.weight.detach().numpy().T
            total += sum(expected_normal_kl(v, nu, spread, mu, config.prior_scale or 0) for mu in columns)
    if config.objective == "paper":
        return (config.kl_weight or 0) / len(model.sites.adapters) * total
    return (config.kl_temperature or 0) / (config.num_train_examples or 0) * total


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_only_the_kl_of_the_noise_differs_and_it_is_the_closed_form(batch: Batch, config: dict[str, Any]) -> None:
    found = {}
    for kl in ("sampled", "expected"):
        model, guide = pair(normal_kl=kl, **config)
        elbo = ItemizedELBO()
        torch.manual_seed(3)
        loss = elbo.loss(model, guide, **batch)
        torch.manual_seed(3)
        assert TraceMeanField_ELBO().loss(model, guide, **batch) == pytest.approx(loss, rel=1e-12)
        found[kl] = {term: value.item() for term, value in elbo.terms.items()}
    torch.manual_seed(3)
    pi = poutine.trace(guide).get_trace().nodes["pi"]["value"].detach().numpy()
    assert found["expected"].pop("kl_normal") == pytest.approx(normal_term(model, guide, pi), rel=1e-9)
    del found["sampled"]["kl_normal"]
    assert found["expected"] == found["sampled"]


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_draw_is_the_same(config: dict[str, Any]) -> None:
    values = []
    for kl in ("sampled", "expected"):
        _, guide = pair(normal_kl=kl, **config)
        torch.manual_seed(3)
        values.append(guide())
    assert torch.equal(values[0].weights, values[1].weights)
    assert all(torch.equal(*both) for both in zip(values[0].columns, values[1].columns, strict=True))


NUM_ADAPTERS, NUM_TRACES, NU = 100, 20, 6.5
ALPHA = torch.tensor([0.7, 2.0, 1.1], dtype=torch.double)
V = torch.tensor([0.5, 1.5, 0.9], dtype=torch.double)


def gradients(config: dict[str, Any], kl: str, *, seed: int, nu: float = NU) -> Tensor:
    """Draws (draw, rank) of the gradient of the KLs by log v; adapters are alike, so that each is one draw."""
    bank = build_bank([5] * NUM_ADAPTERS, rank=3)
    model, guide = build_pair(bank, num_components=3, normal_kl=kl, **config | {"degrees_of_freedom": nu})
    with torch.no_grad():
        guide.concentration_unconstrained.copy_(ALPHA.log().expand(NUM_ADAPTERS, -1))
        guide.scale_r3_unconstrained.copy_(V.log().expand(NUM_ADAPTERS, -1))
    elbo, found = ItemizedELBO(), []
    torch.manual_seed(seed)
    for _ in range(NUM_TRACES):
        elbo.differentiable_loss(model.sample_latents, guide).backward()
        found.append(guide.scale_r3_unconstrained.grad.clone())
        guide.zero_grad()
    return torch.cat(found)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_the_mean_gradient_is_the_same_with_less_noise(config: dict[str, Any]) -> None:
    sampled, expected = gradients(config, "sampled", seed=0), gradients(config, "expected", seed=1)
    if config is ELBO:  # the noise of the weights is left
        assert_same_mean(sampled, expected)
        assert (expected.std(0) < 0.8 * sampled.std(0)).all()
    else:
        assert expected.std(0).max() < 1e-12
        assert_mean(sampled, expected[0])
    # Negative control: another nu would be seen.
    assert deviation(sampled, gradients(config, "expected", seed=1, nu=NU + 1).mean(0)).abs().max() > 8


@pytest.mark.parametrize("outer", [1, 2])
def test_the_variance_that_goes_is_the_one_of_the_diagonal(outer: int) -> None:
    draws = gradients(PAPER | {"num_outer_samples": outer}, "sampled", seed=0) * NUM_ADAPTERS / PAPER["kl_weight"]
    squares = (draws - draws.mean(0)).square() * len(draws) / (len(draws) - 1)
    assert_mean(squares, NU * V.square() / 2 / outer)
