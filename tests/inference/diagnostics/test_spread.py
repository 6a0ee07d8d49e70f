"""Spread over seeds: zero for one fit twice, as planted where a mean, a v or an alpha is moved, and errors."""

import math
from typing import Any

import pytest
import torch

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.inference.diagnostics import AdapterSpread, SeedSpread, seed_spread
from bayes_lora.models import BayesianLoRA
from tests.networks import build_bank, build_pair

Fit = tuple[BayesianLoRA, MonteCLoRAGuide]
ELBO: dict[str, Any] = {"objective": "elbo", "num_train_examples": 70, "degrees_of_freedom": 60.0}
CASES: list[dict[str, Any]] = [
    {},
    {"num_outer_samples": 2, "sampler": "explicit"},
    {"mixture": "sparse"},
    ELBO,
]


def fit(**config: Any) -> Fit:
    return build_pair(build_bank([30, 20, 30], 2, rank_pattern={"layers.2": 3}), sample_scale=0.2, **config)


def deviation(model: BayesianLoRA, guide: MonteCLoRAGuide, adapter: int) -> float:
    """Of the entries of A, root mean square over the rows: eps^2 nu v_j E[sum pi^2] / M, sparse without pi."""
    rank = model.sites.adapters[adapter].rank
    v = guide.scale(rank)[adapter - model.sites.ranks[rank].start].detach()
    alpha = guide.concentration[adapter].detach()
    squared = (alpha * (alpha + 1)).sum() / (alpha.sum() * (alpha.sum() + 1))
    if model.config.mixture == "sparse":
        squared = torch.ones_like(squared)
    nu = model.sites.degrees_of_freedom[adapter]
    return math.sqrt(0.2**2 * nu * v.mean() * squared / model.config.num_outer_samples)


@pytest.mark.parametrize("config", CASES, ids=str)
def test_the_same_fit_has_no_spread(config: dict[str, Any]) -> None:
    found = seed_spread([fit(**config) for _ in range(2)], num_draws=4)
    assert [(a.weights, a.covariance, a.mean) for a in found.adapters] == [(0, 0, 0)] * 3
    assert not found.flagged
    assert found.message.startswith("The fits agree: over 2 seeds")


@pytest.mark.parametrize("config", CASES, ids=str)
def test_a_mean_moved_by_some_posterior_deviations(config: dict[str, Any]) -> None:
    fits = [fit(**config) for _ in range(3)]
    adapter, names = 1, fits[0][0].sites.names
    scale = deviation(*fits[0], adapter)
    for number, (model, _) in enumerate(fits):
        with torch.no_grad():
            model.sites.adapters[adapter].linear.weight.add_(number * scale)
    found = seed_spread(fits, num_draws=80)
    # 0, 1 and 2 deviations have a variance of 1; the draws' own variance has a standard error below sqrt(2 / 80).
    assert found.adapters[adapter].mean == pytest.approx(1, abs=4 * math.sqrt(2 / 80) / 2)
    assert {a.mean for a in found.adapters if a.adapter != names[adapter]} == {0.0}
    assert all(a.weights == a.covariance == 0 for a in found.adapters)
    assert found.flagged
    assert f"(mean of {names[adapter]}); 0.5 is allowed" in found.message


def test_v() -> None:
    """nu v of a Wishart has the standard deviation v sqrt(2 nu)."""
    fits = [fit(**ELBO) for _ in range(2)]
    guide = fits[1][1]
    before = guide.scale(2)[0].detach().clone()
    with torch.no_grad():
        guide.scale_r2 = guide.scale(2) * torch.tensor([[1.5], [1.0]], dtype=torch.double)
    found = seed_spread(fits, num_draws=150)
    between = torch.stack([60 * before, 90 * before]).var(0).mean()
    within = torch.stack([120 * before**2, 120 * (1.5 * before) ** 2]).mean()
    assert found.adapters[0].covariance == pytest.approx((between / within).sqrt().item(), rel=4 / math.sqrt(150))
    assert all(adapter.covariance < 1e-6 for adapter in found.adapters[1:])
    assert all(adapter.weights == 0 for adapter in found.adapters)
    assert found.flagged


def test_alpha() -> None:
    fits = [fit(**ELBO) for _ in range(2)]
    with torch.no_grad():
        fits[1][1].concentration = fits[1][1].concentration * torch.tensor([[1.0], [1.0], [30.0]], dtype=torch.double)
    found = seed_spread(fits, num_draws=150)
    assert found.adapters[2].weights > 0.5
    # Other draws of pi take other numbers from the generator, so what follows is equal up to their means' noise only.
    assert max(adapter.covariance for adapter in found.adapters) < 4 / math.sqrt(150)
    assert found.flagged


def test_components_have_no_order() -> None:
    fits = [fit(**ELBO) for _ in range(2)]
    with torch.no_grad():
        fits[1][1].concentration = fits[1][1].concentration.flip(-1)
    assert max(adapter.weights for adapter in seed_spread(fits, num_draws=150).adapters) < 4 / math.sqrt(150)


def test_what_is_no_number_is_flagged() -> None:
    found = SeedSpread((AdapterSpread("a", 0.0, math.nan, 0.0), AdapterSpread("b", 0.1, 0.1, 0.1)), 2, 0.5)
    assert found.flagged
    assert "(covariance of a)" in found.message


def test_errors() -> None:
    one = fit()
    with pytest.raises(DataError, match=r"1 fits have no spread\. Pass two or more"):
        seed_spread([one])
    other = build_pair(build_bank([30], 2))
    with pytest.raises(DataError, match=r"fit 2 has other adapters than the first one"):
        seed_spread([one, other], num_draws=2)
    with pytest.raises(ConfigurationError, match="num_draws=1 gives no variance"):
        seed_spread([one, one], num_draws=1)
    with pytest.raises(ConfigurationError, match="max_ratio=0 must be positive"):
        seed_spread([one, one], max_ratio=0)
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        seed_spread([one, (one[0], fit()[1])], num_draws=2)
