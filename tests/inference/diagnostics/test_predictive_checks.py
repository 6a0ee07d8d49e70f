"""Posterior-predictive checks: exact distributions of the replicated statistics, the declared rate, wrong models."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from bayes_lora.errors import ConfigurationError, DataError, LikelihoodError
from bayes_lora.inference import Prediction
from bayes_lora.inference.diagnostics import (
    PredictiveCheck,
    check_accuracy,
    check_confidence,
    check_intervals,
    check_label_rates,
    check_labels,
)
from bayes_lora.metrics.classification import reliability_table
from bayes_lora.metrics.multi_label import MultiLabelPrediction
from bayes_lora.metrics.regression import RegressionPrediction
from bayes_lora.models import CausalLanguageModel, GaussianRegression, MultiLabel

FAILURE_RATE = 1e-4  # of a simulation below, were the test exact
CHECKS: list[Callable[..., PredictiveCheck]] = [check_label_rates, check_accuracy, check_confidence]


def well_specified(seed: int, *, num_draws: int = 20, sharpness: float = 1.0, bias: float = 0.0) -> Prediction:
    """Draws that differ, and labels from one more draw of the same kind: what a right posterior predicts.

    `sharpness` and `bias` change the prediction, not the labels.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = 1.5 * torch.randn(1, 200, 3, generator=generator, dtype=torch.double)
    own = 0.3 * torch.randn(num_draws + 1, 1, 3, generator=generator, dtype=torch.double)
    logits = shared + own
    labels = torch.multinomial(logits[-1].softmax(-1), 1, generator=generator).squeeze(1)
    return Prediction(sharpness * logits[:-1] + bias * torch.tensor([1.0, 0.0, 0.0]), labels)


def test_label_rates_of_one_row() -> None:
    """Replicates of a single row are categorical: means and p-values by hand."""
    probs = torch.tensor([[[0.7, 0.2, 0.1]], [[0.5, 0.1, 0.4]]], dtype=torch.double)
    found = check_label_rates(Prediction(probs.log(), torch.tensor([1])), num_replicates=20_000)
    for c, p in enumerate((0.6, 0.15, 0.25)):
        assert abs(found.replicated[c] - p) < 4 * math.sqrt(p * (1 - p) / 20_000)
        observed = c == 1
        expected = 2 * min(p, 1.0) if observed else 2 * min(1 - p, 1.0)
        assert abs(found.p_values[c] - min(1, expected)) < 4 * 2 * math.sqrt(p * (1 - p) / 20_000)
    assert found.observed == (0, 1, 0)
    assert found.names == ("label 0", "label 1", "label 2")


def test_accuracy_of_rows_alike_is_binomial() -> None:
    """60 rows of probabilities (.8, .2), one draw: the number of right ones is Binomial(60, .8)."""
    logits = torch.tensor([0.8, 0.2], dtype=torch.double).log().expand(1, 60, 2)
    labels = (torch.arange(60) >= 40).long()
    found = check_accuracy(Prediction(logits, labels), num_replicates=20_000)
    exact = stats.binom(60, 0.8)
    assert found.observed == pytest.approx((40 / 60,))
    assert abs(found.replicated[0] - 0.8) < 4 * math.sqrt(0.16 / 60 / 20_000)
    tail = exact.cdf(40)
    assert abs(found.p_values[0] - 2 * tail) < 4 * 2 * math.sqrt(tail / 20_000) + 1e-4
    assert found.low[0] * 60 == pytest.approx(exact.ppf(0.025), abs=1)
    assert found.high[0] * 60 == pytest.approx(exact.ppf(0.975), abs=1)


def test_a_replicate_has_one_draw_of_the_posterior() -> None:
    """Two draws that disagree on all rows: rates are near .1 or near .9, and never near .5."""
    logits = torch.tensor([[0.1, 0.9], [0.9, 0.1]], dtype=torch.double).log()[:, None].expand(2, 400, 2)
    half = Prediction(logits, (torch.arange(400) % 2).long())
    found = check_label_rates(half)
    assert found.replicated == pytest.approx((0.5, 0.5), abs=0.02)
    assert found.low[0] < 0.13
    assert found.high[0] > 0.87
    # A rate that neither draw gives lies between what they give: two tails do not see it.
    assert not found.flagged
    assert check_label_rates(Prediction(logits, torch.ones(400, dtype=torch.long))).flagged


def test_confidence_has_the_bins_of_the_reliability_table() -> None:
    prediction = well_specified(0)
    assert prediction.labels is not None
    found = check_confidence(prediction)
    table = [row for row in reliability_table(prediction.mean_probs, prediction.labels, 10) if row.count]
    assert found.counts == tuple(row.count for row in table)
    assert found.observed == pytest.approx([row.accuracy for row in table])
    assert found.names == tuple(f"confidence {row.lower:g} to {row.upper:g}" for row in table)
    # The replicated accuracy of a bin is its mean confidence, up to the replicates' noise.
    for row, replicated in zip(table, found.replicated, strict=True):
        assert abs(replicated - row.confidence) < 4 * math.sqrt(0.25 / row.count / 4000) + 4 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_model_is_flagged_as_seldom_as_declared(check: Callable[..., PredictiveCheck]) -> None:
    flagged = sum(
        check(well_specified(seed, num_draws=100), seed=seed, num_replicates=500, failure_rate=0.05).flagged
        for seed in range(100)
    )
    assert flagged <= stats.binom.ppf(1 - FAILURE_RATE, 100, 0.05)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (check_label_rates, {"bias": 2.0}),
        (check_accuracy, {"sharpness": 3.0}),
        (check_confidence, {"sharpness": 3.0}),
        (check_accuracy, {"sharpness": 0.2}),
    ],
)
def test_a_wrong_model_is_flagged(check: Callable[..., PredictiveCheck], wrong: dict[str, Any]) -> None:
    for seed in range(10):
        found = check(well_specified(seed, **wrong), seed=seed)
        assert found.flagged
        assert "is not what the model predicts: for " in found.message


def normal(seed: int, *, noise: float = 1.0, bias: float = 0.0) -> RegressionPrediction:
    """As `well_specified`, of two outputs; `noise` and `bias` change the prediction, not the labels."""
    generator = torch.Generator().manual_seed(seed)
    locations = torch.randn(1, 150, 2, generator=generator) + 0.2 * torch.randn(21, 1, 2, generator=generator)
    scale = torch.tensor([0.5, 2.0])
    labels = locations[-1] + scale * torch.randn(150, 2, generator=generator)
    return RegressionPrediction(locations[:-1].double() + bias, labels.double(), noise * scale)


NUMBERS = GaussianRegression(1.0)


def test_numbers_of_one_draw_by_hand() -> None:
    """A mean of 50 numbers with noise of 2 is N(1, 4 / 50), and each is in its own central half with probability .5."""
    prediction = RegressionPrediction(
        torch.ones(1, 50, 1).double(), torch.full((50, 1), 1.5).double(), torch.tensor([2.0])
    )
    found = check_labels(prediction, NUMBERS, num_replicates=20_000)
    assert found.names == ("mean", "standard deviation")
    assert found.observed == (1.5, 0.0)
    deviation = 2 / math.sqrt(50)
    assert found.replicated[0] == pytest.approx(1, abs=4 * deviation / math.sqrt(20_000))
    tail = stats.norm.sf(0.5 / deviation)
    assert found.p_values[0] == pytest.approx(2 * tail, abs=8 * math.sqrt(tail / 20_000))
    inside = check_intervals(prediction, num_replicates=20_000)
    assert inside.names == ("the central 50%", "the central 90%")
    assert inside.observed == (1.0, 1.0)
    for probability, replicated in zip((0.5, 0.9), inside.replicated, strict=True):
        assert replicated == pytest.approx(probability, abs=4 * math.sqrt(0.25 / 50 / 20_000))
    assert inside.counts == (50, 50)


@pytest.mark.parametrize("check", [lambda of, **k: check_labels(of, NUMBERS, **k), check_intervals])
def test_numbers_of_a_right_model_are_flagged_as_seldom_as_declared(check: Callable[..., PredictiveCheck]) -> None:
    flagged = sum(check(normal(seed), seed=seed, num_replicates=500, failure_rate=0.05).flagged for seed in range(40))
    assert flagged <= stats.binom.ppf(1 - FAILURE_RATE, 40, 0.05)


def test_numbers_of_a_wrong_model_are_flagged() -> None:
    for seed in range(5):
        assert check_labels(normal(seed, bias=1.5), NUMBERS).flagged
        for noise in (0.5, 2.0):
            assert check_intervals(normal(seed, noise=noise)).flagged


def test_rates_of_several_labels_are_of_the_rows_that_have_them() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.tensor([0.1, 0.5, 0.8]).double()
    labels = (torch.rand(300, 3, generator=generator) < probs).long()
    prediction = MultiLabelPrediction(probs.logit().expand(1, 300, 3), labels)
    found = check_labels(prediction, MultiLabel())
    assert found.observed == pytest.approx(labels.double().mean(0).tolist())
    assert found.replicated == pytest.approx(probs.tolist(), abs=4 * 0.5 / math.sqrt(300 * 4000))
    assert not found.flagged
    assert check_labels(replace(prediction, logits=prediction.logits + 1), MultiLabel()).flagged


def test_many_classes_have_as_many_replicates_as_they_need() -> None:
    logits = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0)).double()
    found = check_label_rates(Prediction(logits, torch.arange(40) % 30))
    assert len(found.p_values) == 30
    assert min(found.p_values) >= 2 / 6002


def test_draws_that_are_not_joint_are_refused_of_every_kind() -> None:
    with pytest.raises(ConfigurationError, match="the draws of each row are independent of those of other rows"):
        check_labels(replace(normal(0), joint=False), NUMBERS)


def test_texts_have_no_labels_drawn() -> None:
    likelihood = CausalLanguageModel()
    tokens = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(LikelihoodError, match=r"CausalLanguageModel keep too little.*check_surprise"):
        check_labels(likelihood.prediction(torch.zeros(1, 2, 3, 5), tokens), likelihood)


def test_no_p_value_is_zero() -> None:
    prediction = well_specified(0, bias=30.0)
    found = check_label_rates(prediction, num_replicates=999)
    assert min(found.p_values) == pytest.approx(2 / 1000)


def test_the_message_is_of_the_worst() -> None:
    found = check_label_rates(well_specified(1))
    worst = int(np.argmin(found.p_values))
    assert found.message.startswith(f"The rate of labels is in line with the model: for label {worst} it is")


@pytest.mark.parametrize("check", CHECKS)
def test_the_seed_decides(check: Callable[..., PredictiveCheck]) -> None:
    before = torch.get_rng_state()
    prediction = well_specified(0)
    assert check(prediction, seed=1) == check(prediction, seed=1)
    assert check(prediction, seed=1).p_values != check(prediction, seed=2).p_values
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("check", CHECKS)
def test_errors(check: Callable[..., PredictiveCheck]) -> None:
    prediction = well_specified(0)
    with pytest.raises(DataError, match="the predicted rows have no labels to check the model against"):
        check(Prediction(prediction.logits))
    labels = torch.full((200,), 9)
    with pytest.raises(DataError, match="labels run from 9 to 9, but there are 3 classes"):
        check(Prediction(prediction.logits, labels))
    with pytest.raises(ConfigurationError, match=r"150 replicates cannot show a p-value below 0\.01 / \d+ statistics"):
        check(prediction, num_replicates=150)
    with pytest.raises(ConfigurationError, match="failure_rate=2 must lie between 0 and 1"):
        check(prediction, failure_rate=2)
