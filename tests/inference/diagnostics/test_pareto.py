"""k-hat: the joint against closed forms, its ratios against an oracle, and where it is refused."""

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoDelta
from scipy import stats
from torch.distributions import MultivariateNormal

import bayes_lora as bl
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.ground_truth.problems import (
    Problem,
    classification_problem,
    exact_posterior,
    regression_problem,
)
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.inference.diagnostics import psis_k_hat
from bayes_lora.inference.diagnostics.importance import pareto_smoothed
from bayes_lora.inference.diagnostics.pareto import num_dimensions
from bayes_lora.inference.guides.autoguides import autoguide
from bayes_lora.inference.guides.posterior_draw import posterior_draw
from bayes_lora.models import BayesianLoRA
from tests.inference.diagnostics.exact import GaussianGuide
from tests.networks import build_network, build_pair, make_batch


def evidence(problem: Problem) -> float:
    """ln p(y) of a regression, A integrated out: y ~ N(V W0 x, noise^2 I + prior^2 Phi Phi')."""
    rows = torch.einsum("cj,ni->ncji", problem.head @ problem.expand, problem.inputs).flatten(2).flatten(0, 1)
    noise = problem.noise_scale
    assert noise is not None
    covariance = noise**2 * torch.eye(len(rows), dtype=rows.dtype) + problem.prior_scale**2 * rows @ rows.mT
    mean = (problem.inputs @ (problem.head @ problem.base).mT).flatten()
    return float(MultivariateNormal(mean, covariance).log_prob(problem.labels.flatten()))


def test_at_the_posterior_every_ratio_is_the_evidence() -> None:
    problem = regression_problem(0)
    exact = exact_posterior(problem)
    model = problem.build()
    found = psis_k_hat(model, GaussianGuide(model, exact.mean, exact.scale_tril), problem.batch, num_draws=100)
    assert found.elbo == pytest.approx(evidence(problem), rel=1e-10)
    assert found.log_evidence == pytest.approx(evidence(problem), rel=1e-10)
    assert found.k_hat == -math.inf
    assert found.effective_draws == pytest.approx(100)
    assert not found.flagged
    assert found.message.startswith("The guide is close to the posterior: k-hat is -inf, and up to 0.50 its draws")


@pytest.mark.parametrize("problem", [regression_problem(1), classification_problem(1)], ids=["normal", "categorical"])
def test_ratios_are_those_of_the_problem(problem: Problem) -> None:
    """Against the problem's own log joint, without Pyro, at the very draws."""
    model = problem.build()
    covariance = 0.2 * torch.eye(10, dtype=torch.double)
    guide = GaussianGuide(model, problem.true_a, torch.linalg.cholesky(covariance))
    found = psis_k_hat(model, guide, problem.batch, num_draws=100, seed=4)
    draws = torch.stack([posterior_draw(model, guide, 4, i).latents.columns[0][0].mT for i in range(100)])
    log_q = MultivariateNormal(problem.true_a.flatten(), covariance).log_prob(draws.flatten(1))
    log_ratios = problem.log_joint(draws) - log_q - 10 * math.log(problem.prior_scale * math.sqrt(2 * math.pi))
    if problem.noise_scale is not None:
        log_ratios -= problem.labels.numel() * math.log(problem.noise_scale * math.sqrt(2 * math.pi))
    assert found.elbo == pytest.approx(log_ratios.mean().item())
    assert found.log_evidence == pytest.approx(log_ratios.logsumexp(0).item() - math.log(100))
    weights, k_hat = pareto_smoothed(log_ratios.numpy())
    assert found.k_hat == pytest.approx(float(k_hat), abs=1e-6)
    assert found.effective_draws == pytest.approx(1 / np.exp(2 * weights).sum())


def test_every_site_counts() -> None:
    """A `MonteCLoRAGuide`: ln q and ln p of pi, Sigma and A by torch's distributions."""
    problem = regression_problem(2)
    model = problem.build(num_components=3, sample_scale=0.2)
    guide = MonteCLoRAGuide(model)
    with torch.no_grad():
        guide.concentration = torch.tensor([[2.0, 3.0, 4.0]], dtype=torch.double)
        guide.scale_r2 = torch.tensor([[0.3, 0.1]], dtype=torch.double)
    found = psis_k_hat(model, guide, problem.batch, num_draws=100, seed=1)
    log_ratios = []
    dirichlet, wishart = torch.distributions.Dirichlet, stats.wishart
    identity = torch.eye(2, dtype=torch.double)
    for i in range(100):
        latents = (draw := posterior_draw(model, guide, 1, i)).latents
        pi, sigma, columns = latents.weights[0], draw.value("Sigma_r2")[0], latents.columns[0][0]
        log_ratio = dirichlet(torch.ones(3, dtype=torch.double)).log_prob(pi).item()
        log_ratio -= dirichlet(guide.concentration[0]).log_prob(pi).item()
        log_ratio += wishart.logpdf(sigma.numpy(), 5, np.eye(2) / 5)
        log_ratio -= wishart.logpdf(sigma.numpy(), 5, np.diag([0.3, 0.1]))
        log_ratio += (
            MultivariateNormal(torch.zeros(2), problem.prior_scale**2 * identity).log_prob(columns).sum().item()
        )
        covariance = 0.2**2 * pi.square().sum() * sigma
        log_ratio -= MultivariateNormal(torch.zeros(2), covariance).log_prob(columns).sum().item()
        log_ratio += problem.log_likelihood(columns.mT).item()
        log_ratio -= problem.labels.numel() * math.log(math.sqrt(2 * math.pi))
        log_ratios.append(log_ratio)
    assert found.elbo == pytest.approx(np.mean(log_ratios))
    assert found.dimension == 2 + 3 + 10


def test_what_the_guide_leaves_out_is_at_its_prior() -> None:
    """A plain Pyro function over A alone is as good a guide as one that draws pi and Sigma from their prior."""
    problem = regression_problem(3)
    model = problem.build()
    site, scale = model.sites.column_site(model.sites.groups[0]), torch.tensor(0.3, dtype=torch.double)
    mean = problem.true_a.mT.unsqueeze(0)

    def guide() -> None:
        pyro.sample(site, Normal(mean, scale).to_event(1))

    found = psis_k_hat(model, guide, problem.batch, num_draws=100, seed=2)
    draws = torch.stack([posterior_draw(model, guide, 2, i).latents.columns[0][0].mT for i in range(100)])
    log_q = Normal(problem.true_a, scale).log_prob(draws).sum((-2, -1))
    constant = 10 * math.log(problem.prior_scale * math.sqrt(2 * math.pi)) + 40 * math.log(2 * math.pi)
    assert found.elbo == pytest.approx((problem.log_joint(draws) - log_q).mean().item() - constant)


def test_a_posterior_that_is_nearly_right_is_not_flagged() -> None:
    for seed in range(3):
        problem = regression_problem(seed)
        exact, model = exact_posterior(problem), problem.build()
        guide = GaussianGuide(model, exact.mean, 1.1 * exact.scale_tril)
        found = psis_k_hat(model, guide, problem.batch, num_draws=100, seed=seed)
        assert -math.inf < found.k_hat < found.threshold
        assert 25 < found.effective_draws < 100
        assert found.elbo < evidence(problem)
        # Within 4 standard errors, by the delta method.
        assert abs(found.log_evidence - evidence(problem)) < 4 * math.sqrt(1 / found.effective_draws - 1 / 100)


def test_it_is_refused_at_transformer_size() -> None:
    batch = {name: value.repeat(4, *[1] * (value.dim() - 1)) for name, value in make_batch().items()}
    model, guide = build_pair(objective="elbo", num_train_examples=20)
    dimension = 4 * 3 + 4 * 10 + 4 * 4 * 16
    assert num_dimensions(model) == dimension
    with pytest.raises(
        ConfigurationError,
        match=rf"has {dimension} dimensions, above max_dimension=200: there the variance of the log ratios grows.*"
        r"check_confidence\) instead, or check the guide on a small network",
    ):
        psis_k_hat(model, guide, batch, max_dimension=200)
    # It is a matter of size alone; and in so many dimensions the start of a fit is far from the posterior.
    found = psis_k_hat(model, guide, batch, num_draws=100)
    assert found.dimension == dimension
    assert found.flagged
    assert found.message.startswith("The guide is not close to the posterior")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "objective='paper' has no joint density to compare the guide with"),
        (
            {"objective": "elbo", "num_train_examples": 5, "kl_temperature": 0.5},
            r"kl_temperature=0\.5 weighs the prior",
        ),
    ],
)
def test_models_without_a_joint(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        psis_k_hat(*build_pair(**config), make_batch())


def test_batches_that_are_not_the_training_set() -> None:
    model, guide = build_pair(objective="elbo", num_train_examples=70)
    batch = make_batch()
    with pytest.raises(DataError, match="the batch has 5 rows, and the posterior is of num_train_examples=70"):
        psis_k_hat(model, guide, batch)
    del batch["labels"]
    with pytest.raises(DataError, match="the batch has no labels, and the joint density needs them"):
        psis_k_hat(model, guide, batch)


def test_a_point_estimate_has_no_density() -> None:
    config = bl.MonteCLoRAConfig(objective="elbo", num_train_examples=5)
    model = BayesianLoRA(build_network(num_layers=1, r=2), config)
    with pytest.raises(
        ConfigurationError, match=r"every draw of 'A_r2_n16' is the same: the guide is a point estimate"
    ):
        psis_k_hat(model, autoguide(model, AutoDelta), make_batch(), num_draws=100)


def test_options_out_of_range() -> None:
    model, guide = build_pair(objective="elbo", num_train_examples=5)
    with pytest.raises(ConfigurationError, match=r"num_draws=99 leaves no tail to fit\. Give 100 or more"):
        psis_k_hat(model, guide, make_batch(), num_draws=99)
    with pytest.raises(ConfigurationError, match="seed=-1 must be"):
        psis_k_hat(model, guide, make_batch(), seed=-1)
    other = build_pair(objective="elbo", num_train_examples=5)[1]
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        psis_k_hat(model, other, make_batch())
