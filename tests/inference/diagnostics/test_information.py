"""KL per adapter: the sites' closed forms one adapter at a time, the terms of the loss in sum, and the moments."""

import math
from typing import Any

import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch.distributions import Dirichlet, MultivariateNormal, kl_divergence

import bayes_lora as bl
from bayes_lora.distributions.column_normal import ColumnNormal
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide, predict
from bayes_lora.inference.diagnostics import AdapterChange, PriorToPosterior, prior_to_posterior
from bayes_lora.inference.diagnostics.draws import RunningMoments
from bayes_lora.inference.guides.autoguides import autoguide
from bayes_lora.inference.guides.posterior_draw import posterior_draw
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import stream
from tests.networks import Batch, build_bank, build_network, build_pair

ELBO: dict[str, Any] = {"objective": "elbo", "num_train_examples": 70, "prior_scale": 0.6, "kl_temperature": 0.5}
CASES: list[dict[str, Any]] = [
    {},
    {"sampler": "explicit", "num_outer_samples": 2},
    {"num_outer_samples": 3, "mixture": "sparse", "normal_kl": "expected"},
    ELBO,
    {**ELBO, "normal_kl": "expected"},
]


def pair(**config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """Two ranks and two widths, so that groups and ranks alternate."""
    network = build_network(num_layers=1, target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    return build_pair(network, sample_scale=0.3, **config)


@pytest.mark.parametrize("config", CASES, ids=str)
def test_they_sum_to_the_terms_of_the_loss(batch: Batch, config: dict[str, Any]) -> None:
    model, guide = pair(**config)
    elbo, totals = ItemizedELBO(), dict.fromkeys(("kl_dirichlet", "kl_wishart", "kl_normal"), 0.0)
    for index in range(2):
        torch.manual_seed(stream(3, index))
        elbo.loss(model, guide, **batch)
        totals = {term: total + elbo.terms[term].item() / 2 for term, total in totals.items()}
    adapters = prior_to_posterior(model, guide, num_draws=2, seed=3).adapters
    assert [adapter.adapter for adapter in adapters] == list(model.sites.names)
    if "objective" in config:
        weight = 0.5 / 70
    else:
        weight = model.config.kl_weight / len(adapters) / model.config.num_outer_samples  # type: ignore[operator]
    num_components = model.config.num_components if model.config.sampler == "explicit" else 1
    for term in ("kl_dirichlet", "kl_wishart"):
        assert weight * sum(getattr(adapter, term) for adapter in adapters) == pytest.approx(totals[term], rel=1e-9)
    weights = [
        weight if "objective" in config else weight / num_components / adapter.in_features
        for adapter in model.sites.adapters
    ]
    normal = sum(w * adapter.kl_normal for w, adapter in zip(weights, adapters, strict=True))
    assert normal == pytest.approx(totals["kl_normal"], rel=1e-9)


def test_one_adapter_at_a_time() -> None:
    """Every adapter's KLs from torch's own distributions, of its own alpha and v."""
    model, guide = pair(**ELBO)
    found = prior_to_posterior(model, guide, num_draws=3, seed=1)
    draws = [posterior_draw(model, guide, 1, index) for index in range(3)]
    for number, adapter in enumerate(model.sites.adapters):
        change, rank, nu = found.adapters[number], adapter.rank, float(adapter.in_features)
        dirichlet = kl_divergence(Dirichlet(guide.concentration[number]), Dirichlet(torch.ones(4, dtype=torch.double)))
        assert change.kl_dirichlet == pytest.approx(dirichlet.item())
        place = number - model.sites.ranks[rank].start
        v = guide.scale(rank)[place] * nu
        assert change.kl_wishart == pytest.approx((nu / 2 * (v.sum() - v.log().sum() - rank)).item())
        normals = []
        for draw in draws:
            spread = 0.3**2 * draw.latents.squared_weights[number]
            covariance = spread * draw.value(f"Sigma_r{rank}")[place]
            columns = MultivariateNormal(adapter.linear.weight.T, covariance)
            prior = MultivariateNormal(torch.zeros_like(v), 0.36 * torch.eye(rank, dtype=torch.double))
            normals.append(kl_divergence(columns, prior).sum())
        assert change.kl_normal == pytest.approx(torch.stack(normals).mean().item())
        assert change.standard_error == pytest.approx(torch.stack(normals).std().item() / math.sqrt(3))
        assert change.total == pytest.approx(change.kl_dirichlet + change.kl_wishart + change.kl_normal)
    assert found.total == pytest.approx(sum(change.total for change in found.adapters))
    assert not found.flagged
    assert found.message.startswith(f"The posterior is {found.total:.4g} nats from its prior; the most of one adapter")


def test_moments() -> None:
    """E A = mu; Var(A_ji) = eps^2 nu v_j E[sum pi^2]: mean and variance ratio within their standard errors."""
    model, guide = build_pair(build_bank([40], 2), sample_scale=0.3, **ELBO)
    (change,) = prior_to_posterior(model, guide, num_draws=400).adapters
    mu, alpha = model.sites.adapters[0].linear.weight.detach(), guide.concentration[0].detach()
    squared = (alpha * (alpha + 1)).sum() / (alpha.sum() * (alpha.sum() + 1))
    variance = 0.3**2 * 40 * guide.scale(2)[0].detach().mean() * squared
    # The mean over 80 entries; but all of a draw share one pi, whose sum of squares varies by less than its mean.
    assert abs(change.variance_ratio / (variance / 0.36).item() - 1) < 4 / math.sqrt(400)
    shift = math.sqrt(mu.square().mean().item() / 0.36)
    assert change.shift == pytest.approx(shift, abs=4 * math.sqrt(variance / 0.36 / 400))


def test_the_prior_itself_is_flagged() -> None:
    model, guide = pair(**ELBO)
    found = prior_to_posterior(model, model.sample_latents, num_draws=40)
    assert [(a.kl_dirichlet, a.kl_wishart, a.kl_normal) for a in found.adapters] == [(0, 0, 0)] * len(found.adapters)
    assert found.unchanged == model.sites.names
    assert found.flagged
    assert "Nothing was learned (below 0.1 nats) about" in found.message
    assert all(abs(a.variance_ratio - 1) < 0.3 and a.shift < 0.3 for a in found.adapters)
    # A site that the guide leaves out is at its prior, too.
    nothing = prior_to_posterior(model, lambda: None, num_draws=2)
    assert nothing.total == 0
    assert not prior_to_posterior(model, guide, num_draws=2).flagged


def test_a_degenerate_posterior_is_flagged() -> None:
    broken = AdapterChange("layer.0", 0.0, 0.0, math.inf, 0.0, 0.0, 0.0)
    found = PriorToPosterior((broken, AdapterChange("layer.1", 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)), 0.1)
    assert found.flagged
    assert found.message == "The divergence from the prior is not finite for layer.0: the posterior is degenerate."


def test_a_joint_draw_has_the_one_draw_estimate(batch: Batch) -> None:
    model = BayesianLoRA(build_network(num_layers=1), bl.MonteCLoRAConfig(**ELBO))
    guide = autoguide(model, AutoMultivariateNormal, init_scale=0.1)
    elbo = ItemizedELBO()
    found = prior_to_posterior(model, guide, num_draws=2, seed=5)
    terms = []
    for index in range(2):
        torch.manual_seed(stream(5, index))
        elbo.loss(model, guide, **batch)
        terms.append(elbo.terms["kl_normal"].item() * 70 / 0.5)
    assert sum(a.kl_normal for a in found.adapters) == pytest.approx(sum(terms) / 2, rel=1e-6)
    assert all(a.kl_dirichlet == a.kl_wishart == 0 for a in found.adapters)


@pytest.mark.parametrize("config", CASES, ids=str)
def test_draws_are_those_of_predict(batch: Batch, config: dict[str, Any]) -> None:
    model, guide = pair(**config)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    before = torch.get_rng_state()
    found = []
    for index in range(2):
        perturbations = model.perturbations(posterior_draw(model, guide, 7, index).latents)
        with torch.no_grad(), model.perturbed(perturbations):
            found.append(model.network_logits(inputs))
    assert torch.equal(torch.get_rng_state(), before)
    drawn = predict(model, guide, [batch], num_samples=2, draws="independent", seed=7)
    torch.testing.assert_close(torch.stack(found), drawn.logits)


def test_running_moments() -> None:
    draws = 1e6 + torch.randn(50, 3, dtype=torch.double)
    moments = RunningMoments()
    for draw in draws:
        moments.add(draw)
    torch.testing.assert_close(moments.mean, draws.mean(0))
    torch.testing.assert_close(moments.variance, draws.var(0))


def test_errors() -> None:
    model, guide = pair()
    with pytest.raises(ConfigurationError, match=r"num_draws=1 gives no variance\. Give num_draws=2 or more"):
        prior_to_posterior(model, guide, num_draws=1)
    with pytest.raises(ConfigurationError, match="least=-1 must be a finite number >= 0"):
        prior_to_posterior(model, guide, least=-1)
    with pytest.raises(ConfigurationError, match="seed=-1 must be"):
        prior_to_posterior(model, guide, seed=-1)
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        prior_to_posterior(model, pair()[1])


def test_columns_of_the_model_are_what_the_twin_takes_them_for() -> None:
    """The prior of a column is a `ColumnNormal`, whose variance the ratios are relative to."""
    model, guide = pair(**ELBO)
    draw = posterior_draw(model, guide, 0, 0)
    for group in model.sites.groups:
        prior = draw.prior.nodes[model.sites.column_site(group)]["fn"]
        assert isinstance(prior, ColumnNormal)
        torch.testing.assert_close(prior.variance, torch.full_like(prior.variance, 0.36))
