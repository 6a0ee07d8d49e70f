"""The methods: closed forms of what each converges to, and one table through which all of them go."""

from dataclasses import replace

import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch import Tensor

from bayes_lora.experiments.ground_truth.methods import (
    Effort,
    all_contestants,
    draw_adapter,
    dropout_draws,
    fit_monteclora,
)
from bayes_lora.experiments.ground_truth.mode import posterior_mode
from bayes_lora.experiments.ground_truth.problems import (
    Problem,
    classification_problem,
    exact_posterior,
    regression_problem,
)
from bayes_lora.inference import MCDropout, MeanFieldGuide, MonteCLoRAGuide, autoguide
from tests.statistics import assert_mean, assert_same_mean

CONTESTANTS = {method.name: method for method in all_contestants()}
SMALL = Effort(num_steps=5, num_draws=7, num_mcmc=5)


def method_draws(name: str, problem: Problem, effort: Effort, seed: int = 0) -> Tensor:
    return CONTESTANTS[name].draw(problem, effort, seed)


@pytest.mark.parametrize("name", [name for name in CONTESTANTS if name != "nuts_again"])
def test_every_method_gives_draws_of_a(name: str) -> None:
    """The same ones for the same seed, and global generators stay."""
    problem = classification_problem(0)
    before = torch.get_rng_state()
    draws = method_draws(name, problem, SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert draws.shape == (1 if name == "map" else 7, *problem.shape)
    assert draws.isfinite().all()
    assert draws.dtype == torch.float64
    assert torch.equal(draws, method_draws(name, problem, SMALL))
    if name != "map":
        assert draws.std(0).max() > 0
        assert not torch.equal(draws, method_draws(name, problem, SMALL, seed=1))


def test_names_are_the_whole_grid() -> None:
    grid = {f"{o}_{m}_N{n}" for o in ("elbo", "paper") for m in ("dense", "sparse") for n in (1, 2, 4, 8, 16)}
    assert grid <= set(CONTESTANTS)
    assert len(CONTESTANTS) == len(all_contestants())


def test_mean_field_reaches_its_optimum() -> None:
    """Of a Gaussian posterior: its mean, and 1 / (diagonal of the precision) as variances (Bishop 2006, eq. 10.13).

    Fitted by single draws, so some error is left after 800 steps: a tenth of a standard deviation, a fifth in variance.
    """
    problem = regression_problem(0)
    exact = exact_posterior(problem)
    draws = method_draws("mean_field", problem, Effort(num_steps=800, num_draws=1000))
    variance = 1 / torch.linalg.inv(exact.covariance).diag().view(problem.shape)
    assert ((draws.mean(0) - exact.mean).abs() < 0.1 * variance.sqrt() + 4 * draws.std(0) / 1000**0.5).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.2 + 4 * (2 / 1000) ** 0.5, atol=0)


def test_monteclora_finds_the_mean_of_a_gaussian_posterior() -> None:
    problem = regression_problem(0)
    exact = exact_posterior(problem)
    model, _ = fit_monteclora(problem, 600, seed=0, sample_scale=problem.prior_scale)
    (group,) = model.sites.groups
    deviation = exact.covariance.diag().sqrt().view(problem.shape)
    error = (model.sites.means(group)[0].mT - exact.mean) / deviation
    assert error.detach().square().mean().sqrt() < 0.15


def test_adapter_draws_have_the_moments_of_the_guide() -> None:
    """Mean mu, variance eps^2 nu v E[sum pi^2] of both objectives, at a fresh guide."""
    problem = regression_problem(0)
    for config in ({"objective": "paper"}, {"objective": "elbo"}):
        model = problem.build(num_components=4, sample_scale=0.3, **config)
        (group,) = model.sites.groups
        model.sites.adapters[0].linear.weight.data.fill_(0.7)
        guide = MonteCLoRAGuide(model)
        draws = draw_adapter(model, guide, 1200, seed=0)
        nu, v = model.sites.degrees_of_freedom[0], guide.scale(group.rank)[0].detach()
        assert_mean(draws, 0.7)
        assert_mean((draws - 0.7).square(), (0.3**2 * nu * v * (2 / 5))[:, None].expand(problem.shape))


def test_first_draws_are_those_of_more() -> None:
    model = regression_problem(0).build(sample_scale=0.3)
    guide = MonteCLoRAGuide(model)
    assert torch.equal(draw_adapter(model, guide, 5, seed=0)[:3], draw_adapter(model, guide, 3, seed=0))


def test_other_guides_draw_a_itself() -> None:
    model = regression_problem(0).build()
    for guide in (
        MeanFieldGuide(model, init_scale=0.2),
        autoguide(model, AutoLowRankMultivariateNormal, init_scale=0.2, rank=2),
    ):
        draws = draw_adapter(model, guide, 400, seed=0)
        assert_mean(draws, 0.0)
        assert draws.std() == pytest.approx(0.2, rel=0.5)


def test_library_laplace_is_the_gauss_newton_matrix_of_lora_a() -> None:
    """The diagonal structure against a dense Gauss-Newton matrix, from draws; 4 standard errors of a variance."""
    problem = classification_problem(0)
    mode = posterior_mode(problem)
    jacobian = torch.autograd.functional.jacobian(lambda a: problem.logits(a, problem.inputs), mode).flatten(2)
    probs = problem.logits(mode, problem.inputs).softmax(-1)
    middle = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    curvature = torch.einsum("ncp,ncd,ndp->p", jacobian, middle, jacobian)
    expected = 1 / (curvature + problem.prior_scale**-2)
    draws = method_draws("laplace_diagonal", problem, replace(SMALL, num_draws=4000))
    assert_mean((draws - mode).square().flatten(1), expected)


def test_kfac_laplace_is_positive_and_correlated() -> None:
    draws = method_draws("laplace_kfac", classification_problem(0), replace(SMALL, num_draws=2000)).flatten(1)
    correlation = torch.corrcoef(draws.mT)
    assert (correlation - correlation.diag().diag()).abs().max() > 0.2


def test_dropout_draws_are_those_of_mc_dropout() -> None:
    """The output of a row has the same mean and variance, both ways; the truth's variance formula holds."""
    problem = regression_problem(0, num_test=3)
    network = problem.build_network()
    a = problem.true_a
    with torch.no_grad():
        network.base_model.model.hidden.lora_A["default"].weight.copy_(a)
    library = MCDropout(network, probability=0.3)([problem.test_batch], num_samples=2000, seed=0).logits
    draws = dropout_draws(a, 0.3, 2000)
    ours = problem.logits(draws, problem.test_inputs)
    assert_same_mean(ours, library)
    assert_same_mean(ours.square(), library.square())
    assert_mean(draws, a)
    assert_mean((draws - a).square(), a.square() * 0.3 / 0.7)
