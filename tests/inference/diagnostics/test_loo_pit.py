"""LOO-PIT: uniform by construction where it must be, its weights against refitting, and what it flags."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import Prediction
from bayes_lora.inference.diagnostics import loo_pit
from bayes_lora.metrics.regression import RegressionPrediction

FAILURE_RATE = 1e-4  # of a simulation below, were the test exact


def calibrated(seed: int, num_rows: int = 300, sharpness: float = 1.0) -> Prediction:
    """One draw, and labels from its own probabilities; the sharper, the more these are overconfident."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(1, num_rows, 4, generator=generator, dtype=torch.double)
    labels = torch.multinomial(logits[0].softmax(-1), 1, generator=generator).squeeze(1)
    return Prediction(sharpness * logits, labels)


def test_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.25, 0.25, 0.5]], dtype=torch.double)
    found = loo_pit(Prediction(probs.log().unsqueeze(0), torch.tensor([1, 1, 0])), held_out=True, seed=3)
    v = np.random.default_rng(3).uniform(size=3)
    np.testing.assert_allclose(found.values, [0.5 + 0.3 * v[0], 0.7 * v[1], 0.5 + 0.5 * v[2]])
    assert found.unreliable == 0
    assert found.p_value == pytest.approx(stats.kstest(found.values, "uniform").pvalue)


def test_the_rate_is_the_declared_one() -> None:
    flagged = sum(loo_pit(calibrated(seed), held_out=True, seed=seed, failure_rate=0.1).flagged for seed in range(400))
    low, high = stats.binom.interval(1 - FAILURE_RATE, 400, 0.1)
    assert low <= flagged <= high


@pytest.mark.parametrize(("sharpness", "word"), [(3.0, "more surprising"), (0.3, "less surprising")])
def test_wrong_probabilities_are_flagged(sharpness: float, word: str) -> None:
    for seed in range(10):
        found = loo_pit(calibrated(seed, sharpness=sharpness), held_out=True, seed=seed)
        assert found.flagged
        assert f"on average the labels are {word.split()[0]} surprising than predicted" in found.message
        right = loo_pit(calibrated(seed), held_out=True, failure_rate=1e-5)
        assert right.message.startswith("The labels' ranks are consistent with calibrated probabilities (p = ")


def test_without_randomization_a_perfect_classifier_would_not_be_uniform() -> None:
    """What the docstring says of V: the mid-distribution value is not uniform for discrete labels."""
    prediction = calibrated(0, num_rows=2000)
    found = loo_pit(prediction, held_out=True)
    assert prediction.labels is not None
    own = prediction.mean_probs.gather(-1, prediction.labels[:, None])
    middle = (torch.where(prediction.mean_probs > own, prediction.mean_probs, 0).sum(-1) + own[:, 0] / 2).numpy()
    assert stats.kstest(middle, "uniform").pvalue < 1e-6 < found.p_value


def conjugate(
    num_rows: int, num_draws: int, generator: torch.Generator, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draws (draw, class) of p from Dirichlet(2 + counts / T), and the labels counted."""
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), num_rows, replacement=True, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        posterior = torch.distributions.Dirichlet(2 + labels.bincount(minlength=3).double() / temperature)
        return posterior.sample((num_draws,)), labels


@pytest.mark.parametrize(("temperature", "unreliable"), [(1.0, 0), (0.5, 0), (0.01, 12)])
def test_weights_leave_the_row_out(temperature: float, unreliable: int) -> None:
    """One Dirichlet for all rows: without row i, the predictive is 2 + counts of the others / T, over their sum; where
    a row has the weight of a hundred, the weights say that they fail."""
    generator = torch.Generator().manual_seed(1)
    probs, labels = conjugate(12, 40_000, generator, temperature)
    prediction = Prediction(probs.log().unsqueeze(1).expand(-1, 12, -1), labels, temperature)
    found = loo_pit(prediction, seed=2)
    assert found.unreliable == unreliable
    if unreliable:
        return
    counts = labels.bincount(minlength=3).double()
    left_out = 2 + (counts - torch.nn.functional.one_hot(labels, 3)) / temperature
    exact = left_out / left_out.sum(-1, keepdim=True)
    logits = exact.log().unsqueeze(0)
    twin = loo_pit(Prediction(logits, labels), held_out=True, seed=2)
    # 40,000 draws: a probability has a standard error below .5 / 200, times what the weights cost.
    np.testing.assert_allclose(found.values, twin.values, atol=4 * 2 * 0.5 / 200)
    seen = loo_pit(prediction, held_out=True, seed=2)
    assert np.abs(seen.values - twin.values).max() > 0.02


def test_draws_of_no_density_leave_no_row_out() -> None:
    probs, labels = conjugate(12, 50, torch.Generator().manual_seed(1))
    with pytest.raises(
        ConfigurationError, match=r"objective='paper' has none, nor have dropout and ensembles.*held_out"
    ):
        loo_pit(Prediction(probs.log().unsqueeze(1).expand(-1, 12, -1), labels))


def test_rows_without_reliable_weights_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(100, 20, 2, generator=generator, dtype=torch.double)
    found = loo_pit(Prediction(logits, torch.zeros(20, dtype=torch.long), 1.0))
    assert found.unreliable > 10
    assert f"For {found.unreliable} of 20 rows the leave-one-out weights are not reliable" in found.message


def test_draws_that_all_agree() -> None:
    """A point estimate repeated: weights are equal, and leave-one-out is the plain mean."""
    one = calibrated(0, num_rows=30)
    many = Prediction(one.logits.expand(50, -1, -1), one.labels, 1.0)
    found = loo_pit(many, seed=1)
    np.testing.assert_allclose(found.values, loo_pit(one, held_out=True, seed=1).values)
    assert found.unreliable == 0


def test_grades_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]], dtype=torch.double)
    found = loo_pit(Prediction(probs.log().unsqueeze(0), torch.tensor([1, 2])), held_out=True, seed=3, ordered=True)
    v = np.random.default_rng(3).uniform(size=2)
    np.testing.assert_allclose(found.values, [0.5 + 0.3 * v[0], 0.8 + 0.2 * v[1]])
    assert found.ordered


def numbers(seed: int, *, noise: float = 1.0, bias: float = 0.0, nu: float | None = None) -> RegressionPrediction:
    """Labels of one draw's own distribution; `noise` and `bias` change what is predicted."""
    generator = torch.Generator().manual_seed(seed)
    location = torch.randn(1, 200, 2, generator=generator).double()
    prediction = RegressionPrediction(location, None, torch.tensor([0.5, 2.0]), nu)
    labels = prediction.drawn(0, 1, generator)[0]
    return RegressionPrediction(location + bias, labels, noise * prediction.noise_scale, nu)


@pytest.mark.parametrize("nu", [None, 5.0])
def test_numbers_are_ranked_by_their_distribution(nu: float | None) -> None:
    right = numbers(0, nu=nu)
    found = loo_pit(right, held_out=True)
    noise: Any = stats.norm() if nu is None else stats.t(nu)
    assert right.labels is not None
    expected = noise.cdf(((right.labels - right.logits[0]) / right.noise_scale).numpy())
    np.testing.assert_allclose(found.values, expected.reshape(-1), rtol=1e-12)
    flagged = sum(loo_pit(numbers(seed, nu=nu), held_out=True, failure_rate=0.1).flagged for seed in range(200))
    low, high = stats.binom.interval(1 - FAILURE_RATE, 200, 0.1)
    assert low <= flagged <= high
    for wrong in ({"noise": 0.5}, {"noise": 2.0}, {"bias": 0.5}):
        found = loo_pit(numbers(1, nu=nu, **wrong), held_out=True)
        assert found.flagged
        assert "the labels' ranks have a mean of" in found.message
    assert loo_pit(numbers(1, bias=-0.5), held_out=True).values.mean() > 0.55  # labels are higher than predicted
    assert loo_pit(numbers(1, noise=0.5), held_out=True).values.std() > 0.32


def test_weights_leave_a_number_out() -> None:
    """y_i ~ N(theta, 1), theta ~ N(0, 9): without row i, y_i is normal about what is known of theta from the others."""
    generator = torch.Generator().manual_seed(2)
    labels = 2 + torch.randn(12, 1, generator=generator).double()
    precision = 1 / 9 + 12
    theta = labels.sum() / precision + precision**-0.5 * torch.randn(40_000, generator=generator).double()
    prediction = RegressionPrediction(theta[:, None, None].expand(-1, 12, 1), labels, torch.ones(1), kl_temperature=1.0)
    found = loo_pit(prediction)
    others = precision - 1
    exact = stats.norm.cdf(labels, (labels.sum() - labels) / others, math.sqrt(1 + 1 / others)).reshape(-1)
    assert found.unreliable == 0
    np.testing.assert_allclose(found.values, exact, atol=4 * 2 * 0.5 / 200)
    assert np.abs(loo_pit(prediction, held_out=True).values - exact).max() > 0.02
    with pytest.raises(ConfigurationError, match="objective='paper' has none"):
        loo_pit(replace(prediction, kl_temperature=None))
    with pytest.raises(ConfigurationError, match="these depend on each other by design"):
        loo_pit(replace(prediction, block_size=2))


def test_the_seed_decides() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    prediction = calibrated(0)
    first, second, other = (loo_pit(prediction, held_out=True, seed=seed).values for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # type: ignore[index]  # noqa: NPY002


def test_errors() -> None:
    prediction = calibrated(0)
    with pytest.raises(DataError, match="the predicted rows have no labels to check the model against"):
        loo_pit(Prediction(prediction.logits))
    with pytest.raises(ConfigurationError, match=r"1 draws leave no tail.*held_out=True"):
        loo_pit(prediction)
    with pytest.raises(ConfigurationError, match="failure_rate=1 must lie between 0 and 1"):
        loo_pit(prediction, held_out=True, failure_rate=1)
    with pytest.raises(DataError, match="some probabilities are NaN"):
        loo_pit(Prediction(prediction.logits * math.nan, prediction.labels), held_out=True)
