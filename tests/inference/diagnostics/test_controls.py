"""The table of diagnostics and wrong posteriors, entry by entry, over seeds.

On problems whose posterior is known: regressions with their exact Gaussian, classifications by importance resampling,
and fits of a `MonteCLoRAGuide` stopped early or left to converge.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from bayes_lora.experiments.ground_truth.problems import (
    Problem,
    classification_problem,
    exact_posterior,
    regression_problem,
)
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide, Prediction
from bayes_lora.inference.diagnostics import (
    CLAIMS,
    CONTROLS,
    check_accuracy,
    check_confidence,
    check_label_rates,
    claims_table,
    convergence,
    loo_pit,
    mixture,
    prior_to_posterior,
    psis_k_hat,
    seed_spread,
    uncertainty_map,
)
from bayes_lora.inference.diagnostics.controls import FALSE_ALARMS, POWER
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import seeded
from tests.inference.diagnostics.exact import GaussianGuide, resampled_posterior

FAILURE_RATE = 0.01  # of an entry's test, were the claimed rate the true one
Outcomes = dict[tuple[str, str], list[bool]]  # diagnostic and control -> whether it was flagged, for each seed
Fit = tuple[BayesianLoRA, MonteCLoRAGuide, list[dict[str, float]]]


def fit_from_random_start(problem: Problem, seed: int, num_steps: int) -> Fit:
    """Adam on mu, alpha and v; LoRA-A starts at a draw of its prior."""
    with seeded(seed, torch.device("cpu")):
        model = problem.build(num_components=4, sample_scale=0.1, normal_kl="expected", degrees_of_freedom=50.0)
        weight = model.sites.adapters[0].linear.weight
        with torch.no_grad():
            weight.normal_(std=problem.prior_scale)
        guide, elbo, history = MonteCLoRAGuide(model), ItemizedELBO(), []
        optimizer = torch.optim.Adam([weight, *guide.parameters()], lr=0.03)
        for step in range(num_steps):
            optimizer.zero_grad()
            history.append({"step": float(step), "loss": elbo.loss_and_grads(model, guide, **problem.batch)})
            optimizer.step()
    return model, guide, history


def of_fits() -> Outcomes:
    problem = regression_problem(0)
    early = [fit_from_random_start(problem, seed, 40) for seed in range(16)]
    converged = [fit_from_random_start(problem, seed, 200) for seed in range(16, 24)]
    found: Outcomes = {}
    for control, fits, last in (("unconverged run", early, 1.0), ("right posterior", converged, 0.5)):
        histories = (history for _, _, history in fits)
        found["convergence", control] = [convergence(h, last=last, tolerance=0.1).flagged for h in histories]
        # Disjoint pairs, so that they are independent.
        couples = [[fit[:2] for fit in fits[i : i + 2]] for i in range(0, len(fits), 2)]
        found["seed_spread", control] = [seed_spread(couple, num_draws=32).flagged for couple in couples]
    found["psis_k_hat", "unconverged run"] = [
        psis_k_hat(model, guide, problem.batch, num_draws=100).flagged for model, guide, _ in early[:6]
    ]
    found["mixture", "right posterior"] = [mixture(model, guide).flagged for model, guide, _ in converged]
    for _, guide, _ in converged:
        with torch.no_grad():
            guide.concentration = torch.tensor([[500.0, 0.5, 0.5, 0.5]], dtype=torch.double)
    found["mixture", "collapsed mixture"] = [mixture(model, guide).flagged for model, guide, _ in converged]
    return found


def of_regressions() -> Outcomes:
    found: Outcomes = {}
    for seed in range(6):
        problem = regression_problem(seed)
        exact, model = exact_posterior(problem), problem.build()
        deviation = exact.covariance.diagonal().sqrt().unflatten(0, problem.shape)
        for control, mean, scale in (
            ("variance x 25", exact.mean, 5.0),
            ("variance / 25", exact.mean, 0.2),
            ("shifted mean", exact.mean + 4 * deviation, 1.0),
            ("right posterior", exact.mean, 1.0),
        ):
            guide = GaussianGuide(model, mean, scale * exact.scale_tril)
            check = psis_k_hat(model, guide, problem.batch, num_draws=100, seed=seed)
            found.setdefault(("psis_k_hat", control), []).append(check.flagged)
        for control, posterior in (("right posterior", guide), ("prior", model.sample_latents)):
            change = prior_to_posterior(model, posterior, num_draws=4, seed=seed)
            found.setdefault(("prior_to_posterior", control), []).append(change.flagged)
    return found


def posteriors(draws: Tensor) -> Mapping[str, Tensor]:
    """Draws (sample, rank, in_features) of the right posterior, and of the controls made of them."""
    mean, deviation = draws.mean(0), draws.std(0)
    return {
        "variance x 25": mean + 5 * (draws - mean),
        "shifted mean": draws + 4 * deviation,
        "right posterior": draws,
    }


def of_classifications() -> Outcomes:
    found: Outcomes = {}
    for seed in range(20):
        problem = classification_problem(seed, num_examples=200, num_test=200)
        generator = torch.Generator().manual_seed(seed)
        draws = resampled_posterior(problem, 200, generator)
        probs = problem.logits(problem.true_a, problem.test_inputs).softmax(-1)
        test_labels = torch.multinomial(probs, 1, generator=generator).squeeze(1)
        for control, a in posteriors(draws).items():
            trained_on = Prediction(problem.logits(a, problem.inputs), problem.labels, kl_temperature=1.0)
            held_out = Prediction(problem.logits(a, problem.test_inputs), test_labels)
            found.setdefault(("loo_pit", control), []).append(loo_pit(trained_on, seed=seed).flagged)
            for check in (check_label_rates, check_accuracy, check_confidence):
                found.setdefault((check.__name__, control), []).append(check(held_out, seed=seed).flagged)
        if seed < 8:
            model = problem.build()
            covariance = torch.cov(draws.flatten(1).mT)
            guide = GaussianGuide(model, draws.mean(0), torch.linalg.cholesky(covariance))
            for control in ("right posterior", "silent noise"):
                heard = uncertainty_map(model, guide, [problem.test_batch], num_samples=4, seed=seed)
                found.setdefault(("uncertainty_map", control), []).append(heard.flagged)
                with torch.no_grad():
                    model.sites.adapters[0].layer.lora_B["default"].weight.zero_()
    return found


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return of_fits() | of_regressions() | of_classifications()


ENTRIES = [(name, control) for name, claims in CLAIMS.items() for control in claims]


@pytest.mark.parametrize(("diagnostic", "control"), ENTRIES)
def test_the_table_holds(outcomes: Outcomes, diagnostic: str, control: str) -> None:
    flagged = outcomes[diagnostic, control]
    if CLAIMS[diagnostic][control] == "must":
        fewest = stats.binom.ppf(FAILURE_RATE, len(flagged), POWER)
        assert sum(flagged) >= max(fewest, 1), f"{sum(flagged)} of {len(flagged)}"
    else:
        most = stats.binom.ppf(1 - FAILURE_RATE, len(flagged), FALSE_ALARMS)
        assert most < len(flagged)
        assert sum(flagged) <= most, f"{sum(flagged)} of {len(flagged)}"


def test_every_control_is_flagged_and_the_right_posterior_is_not() -> None:
    assert {control for claims in CLAIMS.values() for control in claims} == set(CONTROLS)
    for control in CONTROLS:
        claims = [claims.get(control) for claims in CLAIMS.values()]
        if control == "right posterior":
            assert set(claims) == {"never"}
        else:
            assert "must" in claims
    # And every diagnostic is there for something.
    assert all("must" in claims.values() for claims in CLAIMS.values())


def test_the_table_for_people() -> None:
    header, rule, *rows = claims_table().splitlines()
    assert header.split(" | ")[1:-1] == list(CONTROLS)[:-1]
    assert rule.count("---") == len(CONTROLS) + 1
    assert [row.split("`")[1] for row in rows] == list(CLAIMS)
    assert rows[3] == "| `mixture` | - | - | - | - | must | - | - | never |"


def test_draws_computed_by_the_problem_are_those_of_a_network() -> None:
    """The classifications' predictions are computed without PEFT; here is one with it."""
    problem = classification_problem(0)
    draws = resampled_posterior(problem, 30, torch.Generator().manual_seed(0))
    model = problem.build()
    noises = [draws[:, None] - model.sites.means(model.sites.groups[0]).mT.detach()]
    with torch.no_grad(), model.perturbed(noises, num_rows=30 * len(problem.inputs)):
        logits = model.network_logits({"inputs": problem.inputs.repeat(30, 1)}).unflatten(0, (30, -1))
    torch.testing.assert_close(logits, problem.logits(draws, problem.inputs))


def test_the_docs_have_this_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    assert claims_table() in page
    assert all(f"- *{control}*: {words}" in page for control, words in CONTROLS.items())
