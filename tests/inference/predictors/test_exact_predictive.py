"""The posterior predictive on problems whose exact one is known: a Gaussian's in closed form, others by quadrature."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from bayes_lora.experiments.ground_truth.problems import exact_posterior, regression_problem
from bayes_lora.inference import predict
from bayes_lora.metrics.regression import RegressionPrediction
from tests.inference.diagnostics.exact import GaussianGuide
from tests.linear import LAWS, NUM_TEST, LinearCase, QuadratureGuide, linear_case
from tests.statistics import assert_mean

NUM_SAMPLES = 1000


@pytest.fixture(scope="module")
def conjugate() -> tuple[RegressionPrediction, Tensor, Tensor]:
    """What is predicted under the exact posterior; mean (row, output) and covariance (row, output, output) of f."""
    problem = regression_problem(2)
    posterior = exact_posterior(problem)
    model = problem.build()
    guide = GaussianGuide(model, posterior.mean, posterior.scale_tril)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(len(problem.test_inputs), 2, generator=generator, dtype=torch.double)
    batch = {**problem.test_batch, "labels": labels}
    prediction = predict(model, guide, [batch], num_samples=NUM_SAMPLES)
    slope = problem.head @ problem.expand
    jacobian = torch.einsum("cj,ni->ncji", slope, problem.test_inputs).flatten(2)
    mean = problem.test_inputs @ (problem.head @ problem.base).mT + jacobian @ posterior.mean.flatten()
    return prediction, mean, jacobian @ posterior.covariance @ jacobian.mT  # type: ignore[return-value]


def test_mean_and_variances_are_those_of_the_gaussian(
    conjugate: tuple[RegressionPrediction, Tensor, Tensor],
) -> None:
    """y ~ N(mean, Phi C Phi' + sigma^2): ignorance and noise apart."""
    prediction, mean, covariance = conjugate
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert_mean(prediction.logits, mean)
    assert_mean((prediction.logits - mean).square(), variance)
    assert prediction.noise_variance.tolist() == [1.0, 1.0]
    # Of a Gaussian's variance the standard error is known: sqrt(2 / S) of it.
    error = variance * (2 / NUM_SAMPLES) ** 0.5
    assert ((prediction.total_variance - variance - 1).abs() / error).max() < 4


def test_densities_and_probabilities_are_those_of_the_gaussian(
    conjugate: tuple[RegressionPrediction, Tensor, Tensor],
) -> None:
    prediction, mean, covariance = conjugate
    labels = prediction.labels
    assert labels is not None
    exact = MultivariateNormal(mean, covariance + torch.eye(2).double())
    of_draws = Normal(prediction.logits, 1.0).log_prob(labels).sum(-1).exp()
    assert_mean(of_draws, exact.log_prob(labels).exp())
    torch.testing.assert_close(prediction.log_density, of_draws.mean(0).log())
    total = (covariance.diagonal(dim1=-2, dim2=-1) + 1).sqrt()
    assert_mean(Normal(prediction.logits, 1.0).cdf(labels), Normal(mean, total).cdf(labels))
    for probability in (0.05, 0.95):
        bound = Normal(mean, total).icdf(torch.tensor(probability))
        assert_mean(Normal(prediction.logits, 1.0).cdf(bound), probability)
        torch.testing.assert_close(prediction.cdf(bound), Normal(prediction.logits, 1.0).cdf(bound).mean(0))


def test_the_point_estimate_is_not_that_far_from_the_truth_by_chance(
    conjugate: tuple[RegressionPrediction, Tensor, Tensor],
) -> None:
    """What the tests above would say of a predictive without ignorance."""
    prediction, mean, covariance = conjugate
    labels = prediction.labels
    assert labels is not None
    exact = MultivariateNormal(mean, covariance + torch.eye(2).double()).log_prob(labels).exp()
    of_draws = Normal(prediction.logits, 1.0).log_prob(labels).sum(-1).exp()
    at_mean = Normal(mean, 1.0).log_prob(labels).sum(-1).exp()
    assert ((at_mean - exact) / (of_draws.std(0) / NUM_SAMPLES**0.5)).abs().max() > 20


@pytest.fixture(scope="module", params=LAWS)
def predicted(request: pytest.FixtureRequest) -> tuple[LinearCase, Any]:
    """A case, and what is predicted of its test rows under draws of the exact posterior."""
    case = linear_case(request.param)
    return case, predict(case.model, QuadratureGuide(case), [case.test_batch], num_samples=NUM_SAMPLES)


def standard_errors(case: LinearCase, of: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The exact mean of a function of the logits under the posterior, and the standard error of NUM_SAMPLES draws."""
    mean = case.expected(of)
    return mean, np.sqrt(case.expected(lambda f: (of(f) - mean) ** 2) / NUM_SAMPLES)


def test_densities_are_those_of_quadrature(predicted: tuple[LinearCase, Any]) -> None:
    case, prediction = predicted
    exact, error = standard_errors(case, lambda f: np.exp(case.law.log_density(f, case.test_labels)))
    if hasattr(prediction, "log_density"):
        found = prediction.log_density.exp().numpy()
    else:
        found = prediction.mean_probs.numpy()[np.arange(NUM_TEST), case.test_labels]
    assert np.abs((found - exact) / error).max() < 4
    # At the posterior's mean, without ignorance, the same comparison fails.
    values, weights = case.grid
    logits = case.logits((values * weights).sum(), case.problem.test_inputs)
    at_mean = np.exp(case.law.log_density(logits, case.test_labels))
    assert np.abs((at_mean - exact) / error).max() > 4


def test_probabilities_are_those_of_quadrature(predicted: tuple[LinearCase, Any]) -> None:
    case, prediction = predicted
    if case.law.probs is None:  # a regression: its mean and its spread
        unit = getattr(case.model.likelihood, "unit", torch.ones(1)).numpy()
        mean, error = standard_errors(case, lambda f: unit * f)
        centre = getattr(case.model.likelihood, "centre", torch.zeros(1)).numpy()
        found = prediction.mean.numpy() - centre
        variance, of_variance = standard_errors(case, lambda f: (unit * f - mean) ** 2)
        spread = prediction.epistemic_variance.numpy()
        # The variance is about the draws' own mean: smaller by that mean's variance.
        assert np.abs((spread + error**2 - variance) / of_variance).max() < 4
    else:
        mean, error = standard_errors(case, case.law.probs)
        found = prediction.mean_probs.numpy()
    assert np.abs((found - mean) / error).max() < 4
