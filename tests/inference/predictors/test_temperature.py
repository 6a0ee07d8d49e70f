"""Temperature scaling: closed forms, a slow search, the ends of the range, and classes that stay what they were."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import Prediction, predict
from bayes_lora.inference.predictors.point_estimate import PointEstimate
from bayes_lora.inference.predictors.temperature import (
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    TemperatureScaled,
    fit_temperature,
)
from tests.networks import Batch, build_network, build_pair


def random_prediction(seed: int, num_samples: int = 3, scale: float = 3.0, num_classes: int = 4) -> Prediction:
    """Labels follow the mean probabilities in part only, so that the best temperature is inside the range."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_samples, 60, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits.mean(0) / 2).softmax(-1), 1, generator=generator).squeeze(-1)
    return Prediction(logits, labels)


def loss_at(prediction: Prediction, temperature: float) -> float:
    """The obvious way: powers of the mean probabilities."""
    assert prediction.labels is not None
    powers = prediction.mean_probs ** (1 / temperature)
    probs = powers / powers.sum(-1, keepdim=True)
    return -float(probs.gather(-1, prediction.labels.unsqueeze(-1)).log().mean())


@pytest.mark.parametrize("seed", range(6))
def test_no_temperature_is_better(seed: int) -> None:
    prediction = random_prediction(seed)
    found = fit_temperature(prediction)
    searched = scipy.optimize.minimize_scalar(
        lambda log_t: loss_at(prediction, math.exp(log_t)), bounds=(-3, 5), method="bounded", options={"xatol": 1e-9}
    )
    assert found == pytest.approx(math.exp(searched.x), rel=1e-5)  # a minimum is found to half the digits
    # The slope at the optimum, by finite differences, is 0 to their error, and not beside it.
    slopes = [(loss_at(prediction, t * 1.001) - loss_at(prediction, t / 1.001)) / 2e-3 for t in (found, found * 1.1)]
    assert abs(slopes[0]) < 1e-6
    assert slopes[1] > 1e-4


def test_two_classes_have_a_closed_form() -> None:
    """Gap g in all rows, a part q > 1/2 of them right: 1 / (1 + exp(-g / T)) = q."""
    for gap, right, count in ((2.0, 7, 10), (0.5, 9, 10), (30.0, 51, 100)):
        labels = (torch.arange(count) >= right).long()
        logits = torch.tensor([gap, 0.0], dtype=torch.float64).expand(1, count, 2)
        expected = gap / math.log(right / (count - right))
        assert fit_temperature(Prediction(logits, labels)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [0.01, 0.5, 20.0])
def test_it_undoes_a_temperature(factor: float) -> None:
    point = random_prediction(0, num_samples=1)
    changed = Prediction(point.logits * factor, point.labels)
    assert fit_temperature(changed) == pytest.approx(factor * fit_temperature(point), rel=1e-9)


def prediction_of(rows: list[list[float]], labels: list[int]) -> Prediction:
    return Prediction(torch.tensor([rows]), torch.tensor(labels))


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (prediction_of([[1e-4, 0.0], [0.0, 1e-9]], [0, 0]), LEAST_TEMPERATURE),
        (prediction_of([[2.0, 0.0], [0.0, 1.0]], [1, 0]), MOST_TEMPERATURE),
        (prediction_of([[1e4, 0.0], [0.0, 1e4]], [1, 0]), MOST_TEMPERATURE),
        (prediction_of([[2.0, 1.0, 0.0]], [2]), MOST_TEMPERATURE),
        (prediction_of([[2.0, 0.0], [2.0, 0.0]], [0, 1]), MOST_TEMPERATURE),
        (prediction_of([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]], [0, 2]), 1.0),
        (prediction_of([[0.3], [7.0]], [0, 0]), 1.0),
    ],
    ids=[
        *("hardly wrong", "all wrong", "all wrong, sure", "least probable", "half right"),
        *("uniform", "one class"),
    ],
)
def test_the_ends_of_the_range(prediction: Prediction, expected: float) -> None:
    assert fit_temperature(prediction) == expected


@pytest.mark.parametrize(
    "prediction",
    [
        prediction_of([[2.0, 0.0], [0.0, 1.0]], [0, 1]),
        prediction_of([[2.0, 0.0, 1.0]], [0]),
        prediction_of([[1e4, 0.0], [0.0, 1e4]], [0, 1]),
        prediction_of([[2.0, 0.0], [1.0, 1.0]], [0, 1]),
    ],
    ids=["all right", "one row", "all right, sure", "a tie"],
)
def test_rows_that_are_all_right_do_not_say_how_sure_to_be(prediction: Prediction) -> None:
    with pytest.warns(UserWarning, match=r"all of the [12] rows .* predicted right.* stays 1\. Hold out more rows"):
        assert fit_temperature(prediction) == 1


def test_wrong_but_better_than_blind_is_inside_the_range() -> None:
    found = fit_temperature(prediction_of([[2.0, 1.9, -9.0]], [1]))
    assert LEAST_TEMPERATURE < found < MOST_TEMPERATURE
    assert loss_at(prediction_of([[2.0, 1.9, -9.0]], [1]), found) < math.log(3)


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 3.0, 100.0])
def test_it_scales_the_log_of_the_mean_and_keeps_the_classes(temperature: float) -> None:
    mixed = random_prediction(1)
    scaled = TemperatureScaled(lambda loader, **_: mixed, temperature)([])
    powers = mixed.mean_probs ** (1 / temperature)
    assert scaled.logits.shape == (1, 60, 4)
    torch.testing.assert_close(scaled.mean_probs, powers / powers.sum(-1, keepdim=True), rtol=1e-9, atol=1e-200)
    assert torch.equal(scaled.mean_probs.argmax(-1), mixed.mean_probs.argmax(-1))
    assert scaled.labels is mixed.labels
    # Of the probabilities, not of each draw's logits.
    each = (mixed.logits / temperature).softmax(-1).mean(0)
    assert torch.allclose(scaled.mean_probs, each) == (temperature == 1.0)


def test_saturated_probabilities_stay_finite() -> None:
    sure = prediction_of([[2e3, 0.0], [2e3, 0.0], [2e3, 0.0]], [0, 0, 1])
    temperature = fit_temperature(sure)
    assert temperature == MOST_TEMPERATURE  # 2e3 / T = log 2 is beyond
    scaled = TemperatureScaled(lambda loader, **_: sure, 100.0)([])
    torch.testing.assert_close(scaled.logits[0, :, 1], torch.full((3,), -20.0, dtype=torch.float64), rtol=1e-8, atol=0)


def test_on_top_of_a_network_and_of_a_posterior(batch: Batch) -> None:
    network = build_network()
    point = PointEstimate(network)
    torch.testing.assert_close(
        TemperatureScaled(point, 2.0)([batch]).mean_probs, (point([batch]).logits[0] / 2).softmax(-1)
    )
    model, guide = build_pair(sample_scale=0.3)
    calls: list[tuple[int, int]] = []

    def posterior(loader: object, *, num_samples: int = 32, seed: int = 0, on_batch: object = None) -> Prediction:
        calls.append((num_samples, seed))
        return predict(model, guide, [batch], num_samples=num_samples, seed=seed)

    scaled = TemperatureScaled(posterior, 1.0)([batch], num_samples=5, seed=9)
    assert calls == [(5, 9)]
    mean: Tensor = predict(model, guide, [batch], num_samples=5, seed=9).mean_probs
    torch.testing.assert_close(scaled.mean_probs, mean)
    assert scaled.mutual_information.abs().max() == 0


def test_refused() -> None:
    logits = torch.zeros(1, 3, 2)
    with pytest.raises(DataError, match="these rows have none"):
        fit_temperature(Prediction(logits))
    with pytest.raises(DataError, match="there are no rows"):
        fit_temperature(Prediction(torch.zeros(1, 0, 2), torch.zeros(0, dtype=torch.long)))
    for label in (-100, 2):
        with pytest.raises(DataError, match=f"labels run from .*{label}"):
            fit_temperature(Prediction(logits, torch.tensor([0, 1, label])))
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_temperature(Prediction(logits + np.nan, torch.tensor([0, 1, 1])))
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigurationError, match="temperature="):
            TemperatureScaled(lambda loader, **_: Prediction(logits), temperature)
