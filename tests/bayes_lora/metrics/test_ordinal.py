"""Grades: what takes their order into account, by hand and by the formulas' own sums."""

import math

import pytest
import torch

from bayes_lora.errors import DataError
from bayes_lora.metrics.classification import evaluate
from bayes_lora.metrics.ordinal import ordinal_metrics
from bayes_lora.metrics.prediction import Prediction

PROBS = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.4, 0.1]], dtype=torch.double)
LABELS = torch.tensor([0, 1, 3])


def of(probs: torch.Tensor, labels: torch.Tensor | None) -> Prediction:
    return Prediction(probs.clamp_min(1e-300).log().unsqueeze(0), labels)


def test_by_hand() -> None:
    found = ordinal_metrics(of(PROBS, LABELS))
    # Medians 0, 2 and 1.
    assert found["mae"] == pytest.approx((0 + 1 + 2) / 3)
    by_row = [0.3**2 + 0.1**2, 0.1**2 + 0.7**2 + 0.4**2, 0.5**2 + 0.9**2]
    assert found["rps"] == pytest.approx(sum(by_row) / 3)
    # Observed disagreement 0 + 1 + 4, expected: mean over all pairs of median and label of their squared distance.
    observed = (0 + 1 + 4) / 3
    expected = sum((m - y) ** 2 for m in (0, 2, 1) for y in (0, 1, 3)) / 9
    assert found["quadratic_kappa"] == pytest.approx(1 - observed / expected)
    assert {name: found[name] for name in ("accuracy", "nll", "ece", "brier")} == pytest.approx(evaluate(PROBS, LABELS))


def test_a_near_miss_costs_less_than_a_far_one() -> None:
    near, far = torch.tensor([[0.0, 0.9, 0.1, 0.0]]), torch.tensor([[0.0, 0.1, 0.0, 0.9]])
    scores = [ordinal_metrics(of(probs.double(), torch.tensor([2])))["rps"] for probs in (near, far)]
    assert scores[0] < scores[1]


def test_edges() -> None:
    same = ordinal_metrics(of(PROBS[:1], torch.tensor([0])))
    assert math.isnan(same["quadratic_kappa"])
    with pytest.raises(DataError, match="no labels"):
        ordinal_metrics(of(PROBS, None))
    with pytest.raises(DataError, match="labels run from 0 to 4"):
        ordinal_metrics(of(PROBS, torch.tensor([0, 1, 4])))
