"""Metrics against scikit-learn, against a table worked by hand, and at the edges."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor

from bayes_lora.errors import BayesLoRAError, DataError
from bayes_lora.inference import evaluate
from bayes_lora.inference.metrics import (
    accuracy,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)


def random_predictions(num_examples: int = 400, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_examples, num_classes, generator=generator, dtype=torch.double)
    return logits.softmax(-1), torch.randint(0, num_classes, (num_examples,), generator=generator)


def binned_calibration_error(probs: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Bin by bin, as Naeini et al. write it: bins (b / B, (b + 1) / B], their share times |accuracy - confidence|."""
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    total = 0.0
    for b in range(num_bins):
        inside = (confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(total)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_against_scikit_learn(num_classes: int) -> None:
    probs, labels = random_predictions(num_classes=num_classes)
    found = evaluate(probs, labels)
    classes = list(range(num_classes))
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, probs.argmax(-1)), rel=1e-12)
    assert found["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, probs, labels=classes), rel=1e-12)
    one_hot = np.eye(num_classes)[labels]
    assert found["brier"] == pytest.approx(float(((probs.numpy() - one_hot) ** 2).sum(1).mean()), rel=1e-12)
    if num_classes == 2:
        # scikit-learn's binary score counts one class only.
        assert found["brier"] == pytest.approx(2 * sklearn.metrics.brier_score_loss(labels, probs[:, 1]), rel=1e-12)
    assert found["ece"] == pytest.approx(binned_calibration_error(probs.numpy(), labels.numpy()), rel=1e-12)
    assert 0.1 < found["ece"] < 1


def test_calibration_error_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.35, 0.65]], dtype=torch.double)
    labels = torch.tensor([0, 0, 0, 1])
    # Of ten bins: (.8, .9] holds both .9, right; (.7, .8] holds .8, wrong; (.6, .7] holds .65, right.
    expected = (2 * (1 - 0.9) + 0.8 + (1 - 0.65)) / 4
    assert expected_calibration_error(probs, labels, num_bins=10) == pytest.approx(expected, rel=1e-12)
    # In one bin the gaps cancel: three of four right at a mean confidence of .8125.
    assert expected_calibration_error(probs, labels, num_bins=1) == pytest.approx(0.8125 - 0.75, rel=1e-12)


def test_calibrated_predictions_have_a_small_error() -> None:
    probs, _ = random_predictions(num_examples=200_000)
    labels = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(1)).squeeze(-1)
    # Each bin's gap is about sqrt(p (1 - p) / n_b); summed over 15 bins with shares n_b / n that is below this.
    assert expected_calibration_error(probs, labels) < 4 * 0.5 * math.sqrt(15 / 200_000)


@pytest.mark.parametrize("k", range(1, 16))
def test_bin_edges_belong_to_the_bin_below(k: int) -> None:
    edge = k / 15
    # Rows at the edge and a hair below it: one bin, so one gap; in two bins the gaps would add up.
    probs = torch.tensor([[edge, 1 - edge], [edge - 1e-6, 1 - edge + 1e-6]], dtype=torch.double)
    probs = torch.nn.functional.pad(probs, (0, 15)) if k > 7 else probs
    if k <= 7:
        probs = torch.cat([probs[:, :1], (1 - probs[:, :1]).expand(-1, 40) / 40], dim=1)
    labels = torch.tensor([0, 1])
    confidence = probs.max(-1).values
    assert expected_calibration_error(probs, labels) == pytest.approx(abs(1 - confidence.sum().item()) / 2, abs=1e-12)


def test_perfect_prediction() -> None:
    found = evaluate(torch.eye(3), torch.arange(3))
    assert found == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probability_zero_for_the_label(dtype: torch.dtype) -> None:
    found = evaluate(torch.eye(2, dtype=dtype), torch.tensor([1, 0]))
    assert found["nll"] == pytest.approx(-math.log(torch.finfo(dtype).tiny))
    assert (found["accuracy"], found["ece"], found["brier"]) == (0.0, 1.0, 2.0)


def test_a_single_example() -> None:
    found = evaluate(torch.tensor([[0.25, 0.75]]), torch.tensor([1]))
    assert found["accuracy"] == 1
    assert found["nll"] == pytest.approx(-math.log(0.75))
    assert found["ece"] == pytest.approx(0.25)
    assert found["brier"] == pytest.approx(2 * 0.25**2)


def test_ties_go_to_the_lower_class() -> None:
    probs = torch.full((2, 2), 0.5)
    assert accuracy(probs, torch.tensor([0, 1])) == 0.5
    assert accuracy(probs, torch.tensor([0, 0])) == 1.0


def test_one_class() -> None:
    probs, labels = torch.ones(3, 1), torch.zeros(3, dtype=torch.long)
    assert evaluate(probs, labels) == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}


def test_results_do_not_depend_on_the_order() -> None:
    probs, labels = random_predictions()
    order = torch.randperm(len(labels))
    shuffled = evaluate(probs[order], labels[order])
    for name, value in evaluate(probs, labels).items():
        assert shuffled[name] == pytest.approx(value, rel=1e-12)


def test_single_precision_is_close() -> None:
    probs, labels = random_predictions()
    single = probs.float()
    for metric in (accuracy, negative_log_likelihood, brier_score, expected_calibration_error):
        assert metric(single, labels) == pytest.approx(metric(probs, labels), rel=1e-5)


@pytest.mark.parametrize(
    ("probs", "labels"),
    [
        (torch.ones(0, 3), torch.ones(0, dtype=torch.long)),
        (torch.ones(2, 3), torch.ones(3, dtype=torch.long)),
        (torch.ones(2, 5, 3), torch.ones(2, dtype=torch.long)),
        (torch.ones(2, 3), torch.ones(2, 1, dtype=torch.long)),
    ],
)
def test_errors(probs: Tensor, labels: Tensor) -> None:
    with pytest.raises(
        DataError, match=r"metrics need probabilities \(example, class\).*prediction\.mean_probs"
    ) as caught:
        evaluate(probs, labels)
    assert isinstance(caught.value, BayesLoRAError)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes(label: int) -> None:
    with pytest.raises(DataError, match=rf"labels run from {min(label, 0)} to {max(label, 0)}, .* 3 classes"):
        evaluate(torch.full((2, 3), 1 / 3), torch.tensor([0, label]))


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="some probabilities are NaN or infinite"):
        evaluate(torch.tensor([[0.5, 0.5], [float("nan"), 0.5]]), torch.tensor([0, 1]))
