"""The problems: the function is the network, the density is the Pyro model's, the closed form is the posterior."""

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.experiments.ground_truth.mode import hessians, laplace_approximation, posterior_mode
from bayes_lora.experiments.ground_truth.problems import (
    Problem,
    classification_problem,
    exact_posterior,
    regression_problem,
)
from bayes_lora.models import GaussianRegression
from tests.statistics import assert_mean

MakeProblem = Callable[[int], Problem]
both = pytest.mark.parametrize("make", [regression_problem, classification_problem])


def some_adapters(problem: Problem, number: int = 4) -> Tensor:
    return torch.randn(number, *problem.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def model_log_joint(problem: Problem, a: Tensor, **config: object) -> float:
    """ln p(y, A), summed over the training rows, from a trace of the Pyro model."""
    model = problem.build(**config)
    (group,) = model.sites.groups
    conditioned = poutine.condition(model, data={model.sites.column_site(group): a.mT[None]})
    trace = poutine.trace(conditioned).get_trace(**problem.batch)
    total = trace.log_prob_sum(lambda name, _: name in ("y", model.sites.column_site(group)))
    return float(total.detach()) * len(problem.inputs)


@both
def test_the_function_is_the_network(make: MakeProblem) -> None:
    problem = make(0)
    network = problem.build_network()
    for a in some_adapters(problem):
        with torch.no_grad():
            network.base_model.model.hidden.lora_A["default"].weight.copy_(a)
            found = network(inputs=problem.test_inputs).logits
        torch.testing.assert_close(found, problem.logits(a, problem.test_inputs))


@both
def test_many_adapters_at_once_are_one_by_one(make: MakeProblem) -> None:
    problem = make(0)
    a = some_adapters(problem)
    torch.testing.assert_close(problem.log_joint(a), torch.stack([problem.log_joint(one) for one in a]))


@both
def test_density_is_that_of_the_model(make: MakeProblem) -> None:
    problem = make(1)
    a = some_adapters(problem)
    of_model = [model_log_joint(problem, one) for one in a]
    differences = problem.log_joint(a) - torch.tensor(of_model, dtype=torch.float64)
    torch.testing.assert_close(differences, differences[:1].expand(4), rtol=0, atol=1e-9)
    # Another prior is another density, and is seen as one.
    of_other = [model_log_joint(problem, one, prior_scale=0.6) for one in a]
    assert (problem.log_joint(a) - torch.tensor(of_other, dtype=torch.float64)).std() > 0.1


def test_closed_form_is_proportional_to_the_joint_density() -> None:
    problem = regression_problem(2)
    exact = exact_posterior(problem)
    a = some_adapters(problem)
    density = dist.MultivariateNormal(exact.mean.flatten(), exact.covariance).log_prob(a.flatten(1))
    differences = problem.log_joint(a) - density
    torch.testing.assert_close(differences, differences[:1].expand(4), rtol=0, atol=1e-8)


def test_draws_of_the_closed_form_have_its_moments() -> None:
    exact = exact_posterior(regression_problem(2))
    draws = exact.sample(4000, torch.Generator().manual_seed(0))
    assert_mean(draws, exact.mean)
    centred = (draws - exact.mean).flatten(1)
    assert_mean(centred[:, :, None] * centred[:, None, :], exact.covariance)


def test_laplace_of_a_regression_is_the_closed_form() -> None:
    problem = regression_problem(3)
    exact, found = exact_posterior(problem), laplace_approximation(problem)
    torch.testing.assert_close(found.mean, exact.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.covariance, exact.covariance, rtol=1e-9, atol=1e-9)


def test_mode_of_a_classification_is_one() -> None:
    problem = classification_problem(3)
    mode = posterior_mode(problem)
    near = mode + 1e-2 * some_adapters(problem, 50)
    assert (problem.log_joint(near) < problem.log_joint(mode)).all()
    assert torch.linalg.eigvalsh(hessians(lambda a: -problem.log_joint(a), mode))[0] > 0


def test_hessians_are_those_of_autograd() -> None:
    problem = classification_problem(0)
    a = some_adapters(problem)
    slow = [torch.autograd.functional.hessian(problem.log_joint, one) for one in a]
    size = a[0].numel()
    torch.testing.assert_close(hessians(problem.log_joint, a), torch.stack(slow).reshape(4, size, size))


def test_the_closed_form_is_for_regressions() -> None:
    with pytest.raises(ConfigurationError, match="classification has no closed form"):
        exact_posterior(classification_problem(0))


@both
def test_a_seed_is_a_problem_and_global_generators_stay(make: MakeProblem) -> None:
    before = torch.get_rng_state()
    one, same, other = make(7), make(7), make(8)
    one.build_network()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.labels, same.labels)
    assert torch.equal(one.true_a, same.true_a)
    assert not torch.equal(one.true_a, other.true_a)


@both
def test_only_a_is_learned(make: MakeProblem) -> None:
    model = make(0).build()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "network.base_model.model.hidden.lora_A.default.weight"
    ]


def test_true_adapters_come_from_the_prior() -> None:
    truths = torch.stack([regression_problem(seed).true_a for seed in range(300)])
    assert_mean(truths, 0.0)
    assert_mean(truths.square(), 0.25)


def test_regression_likelihood_is_a_mean_over_rows() -> None:
    problem = regression_problem(0)
    logits = problem.logits(problem.true_a, problem.inputs)
    trace = poutine.trace(GaussianRegression(2.0)).get_trace(logits, problem.labels)
    expected = dist.Normal(logits, 2.0).log_prob(problem.labels).sum() / len(logits)
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    with pytest.raises(LikelihoodError, match="one real number for each output"):
        GaussianRegression(2.0)(logits, problem.labels[:, 0])
