"""NUTS: the closed form where there is one, and an error where chains cannot be trusted."""

import pytest
import torch
from torch import Tensor

from bayes_lora.errors import NotConvergedError
from bayes_lora.experiments.ground_truth.nuts import Chains, run_chain, sample_posterior
from bayes_lora.experiments.ground_truth.problems import exact_posterior, regression_problem


def independent_chains(num_draws: int = 400, shift: float = 0.0) -> Tensor:
    """Four chains of independent standard normal draws; the first is shifted."""
    draws = torch.randn(4, num_draws, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[0] += shift
    return draws


def test_agrees_with_the_closed_form() -> None:
    """Means and variances within 4.5 standard errors, from the effective draws: 20 looks, wrong once in 7,000."""
    problem = regression_problem(2, num_examples=20, in_features=3)
    exact = exact_posterior(problem)
    chains = sample_posterior(problem, num_samples=250, num_warmup=150, seed=1)
    draws, ess = chains.pooled, chains.ess
    variance = exact.covariance.diag().view(problem.shape)
    assert ((draws.mean(0) - exact.mean).abs() < 4.5 * (variance / ess).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < 4.5 * (2 / ess).sqrt()).all()
    # The test can tell a wrong posterior: half of a standard deviation off is seen.
    assert ((draws.mean(0) + variance.sqrt() / 2 - exact.mean).abs() > 4.5 * (variance / ess).sqrt()).all()


def test_a_chain_is_its_seed_and_global_generators_stay() -> None:
    problem = regression_problem(0, num_examples=10, in_features=2)
    before = torch.get_rng_state()
    one, same, other = (run_chain(problem, 10, 10, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_good_chains_pass() -> None:
    Chains.of(independent_chains()).require_converged()


def test_a_chain_elsewhere_is_refused() -> None:
    with pytest.raises(NotConvergedError, match=r"have not converged at A\[\d, \d\]: largest R-hat 1\.\d+"):
        Chains.of(independent_chains(shift=1.0)).require_converged()


def test_few_effective_draws_are_refused() -> None:
    draws = independent_chains(5000)
    noise = draws.clone()
    for step in range(1, draws.shape[1]):  # autoregressive: R-hat is fine, draws are worth little
        draws[:, step] = 0.99 * draws[:, step - 1] + 0.141 * noise[:, step]
    chains = Chains.of(draws)
    with pytest.raises(NotConvergedError, match="fewest effective draws"):
        chains.require_converged()


def test_nan_is_refused() -> None:
    draws = independent_chains()
    draws[0, 0, 0, 0] = torch.nan
    with pytest.raises(NotConvergedError, match="R-hat nan"):
        Chains.of(draws).require_converged()
