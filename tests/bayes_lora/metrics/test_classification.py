"""Metrics against scikit-learn, against a table worked by hand, and at the edges."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor

from bayes_lora.errors import BayesLoRAError, DataError
from bayes_lora.inference import Prediction, evaluate
from bayes_lora.metrics.classification import (
    accuracy,
    adaptive_calibration_error,
    all_metrics,
    brier_score,
    calibration_bins,
    example_losses,
    expected_calibration_error,
    f1_score,
    matthews_correlation,
    negative_log_likelihood,
    reliability_table,
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


Metric = Callable[[Tensor, Tensor], float]


def certain(classes: list[int], num_classes: int) -> Tensor:
    """Probabilities with which these classes are predicted."""
    probs = torch.full((len(classes), num_classes), 0.1 / num_classes, dtype=torch.double)
    return probs + 0.9 * torch.nn.functional.one_hot(torch.tensor(classes), num_classes)


def test_f1_and_matthews_of_two_classes_by_hand() -> None:
    # 3 true and 1 false positives, 2 false and 4 true negatives.
    probs = certain([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], 2)
    labels = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    assert f1_score(probs, labels) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert matthews_correlation(probs, labels) == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    # Class 1 it is, not the other: with the classes swapped, true negatives take the place of true positives.
    assert f1_score(probs.flip(-1), 1 - labels) == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))


def test_f1_and_matthews_of_more_classes() -> None:
    probs, labels = random_predictions(num_classes=4)
    predicted = probs.argmax(-1)
    parts = []
    for c in range(4):
        both, either = ((predicted == c) & (labels == c)).sum(), (predicted == c).sum() + (labels == c).sum()
        parts.append(float(2 * both / either))
    assert f1_score(probs, labels) == pytest.approx(np.mean(parts), rel=1e-6)
    # Matthews' correlation is that of the one-hot columns, pooled over classes (Gorodkin 2004, equation 8).
    x, y = (torch.nn.functional.one_hot(classes, 4).double() for classes in (predicted, labels))
    x, y = x - x.mean(0), y - y.mean(0)
    pooled = (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()
    assert matthews_correlation(probs, labels) == pytest.approx(float(pooled), rel=1e-9)


@pytest.mark.parametrize(
    ("predicted", "labels", "f1", "matthews"),
    [
        ([0, 0, 0], [0, 0, 0], math.nan, 0.0),  # class 1 nowhere
        ([1, 1, 1], [1, 1, 1], 1.0, 0.0),  # one class, all right
        ([0, 0, 0], [0, 1, 1], 0.0, 0.0),  # none found
        ([0, 1, 1], [0, 0, 0], 0.0, 0.0),  # none there
        ([0, 1], [0, 1], 1.0, 1.0),  # perfect
        ([1, 0], [0, 1], 0.0, -1.0),  # all wrong
        ([1], [1], 1.0, 0.0),  # a single example
    ],
)
def test_f1_and_matthews_at_the_edges(predicted: list[int], labels: list[int], f1: float, matthews: float) -> None:
    probs = certain(predicted, 2)
    assert f1_score(probs, torch.tensor(labels)) == pytest.approx(f1, nan_ok=True)
    assert matthews_correlation(probs, torch.tensor(labels)) == matthews


def test_f1_counts_only_classes_that_occur() -> None:
    assert f1_score(certain([0, 1, 1], 5), torch.tensor([0, 1, 1])) == 1.0
    assert f1_score(torch.ones(3, 1), torch.zeros(3, dtype=torch.long)) == 1.0


def equal_mass_error(probs: np.ndarray, labels: np.ndarray, num_bins: int) -> float:
    """Bin by bin, for rows without ties: row i of n in order of confidence is in bin floor(i B / n)."""
    order = np.argsort(probs.max(1))
    total = 0.0
    for b in range(num_bins):
        rows = [row for i, row in enumerate(order) if i * num_bins // len(order) == b]
        if rows:
            correct, confidence = probs[rows].argmax(1) == labels[rows], probs[rows].max(1)
            total += len(rows) / len(order) * abs(correct.mean() - confidence.mean())
    return float(total)


@pytest.mark.parametrize("num_examples", [7, 15, 40, 400])
def test_adaptive_error_bin_by_bin(num_examples: int) -> None:
    probs, labels = random_predictions(num_examples)
    found = adaptive_calibration_error(probs, labels)
    assert found == pytest.approx(equal_mass_error(probs.numpy(), labels.numpy(), 15), rel=1e-12)
    assert 0 < found < 1


def test_adaptive_error_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.35, 0.65]], dtype=torch.double)
    labels = torch.tensor([0, 0, 0, 1])
    # In halves: .65 and .7, both right; .8, wrong, and .9, right.
    expected = 0.5 * (1 - 0.675) + 0.5 * (0.85 - 0.5)
    assert adaptive_calibration_error(probs, labels, num_bins=2) == pytest.approx(expected, rel=1e-12)
    assert adaptive_calibration_error(probs, labels, num_bins=1) == pytest.approx(0.7625 - 0.75, rel=1e-12)


def test_adaptive_error_is_blind_to_the_order_of_ties() -> None:
    probs = torch.tensor([[0.6, 0.4]], dtype=torch.double).expand(4, -1)
    found = {
        round(adaptive_calibration_error(probs, torch.tensor(labels), num_bins=2), 12)
        for labels in ([0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0])
    }
    # Half of them right at .6; taken as they stand, the first of the three would have halves .4 and .6 off.
    assert found == {0.1}


def test_adaptive_bins_resolve_where_the_rows_are() -> None:
    # All confidences lie in the top equal-width bin, where two errors cancel.
    probs = torch.tensor([[0.94, 0.06]] * 50 + [[0.98, 0.02]] * 50, dtype=torch.double)
    labels = torch.tensor([0] * 50 + [0] * 46 + [1] * 4)
    assert expected_calibration_error(probs, labels) == pytest.approx(0, abs=1e-12)
    assert adaptive_calibration_error(probs, labels, num_bins=2) == pytest.approx(0.06, rel=1e-9)


def test_reliability_table() -> None:
    probs, labels = random_predictions()
    table = reliability_table(probs, labels)
    assert [(row.lower, row.upper) for row in table] == [(b / 15, (b + 1) / 15) for b in range(15)]
    counts, confidence, correct = calibration_bins(probs, labels)
    assert [row.count for row in table] == counts.tolist()
    assert sum(row.count for row in table) == len(labels)
    for row, mean, share in zip(table, confidence.tolist(), correct.tolist(), strict=True):
        if row.count == 0:
            assert all(math.isnan(value) for value in (row.confidence, row.accuracy, row.standard_error))
        else:
            assert row.lower < row.confidence <= row.upper
            assert (row.confidence, row.accuracy) == (mean, share)
            assert row.standard_error == pytest.approx(math.sqrt(share * (1 - share) / row.count))
    # Four classes: nothing lies below 1/4, so both kinds of rows were there.
    assert [row.count == 0 for row in table[:3]] == [True] * 3
    error = sum(row.count * abs(row.accuracy - row.confidence) for row in table if row.count) / len(labels)
    assert error == pytest.approx(expected_calibration_error(probs, labels), rel=1e-12)


def test_example_losses_are_what_is_averaged() -> None:
    probs, labels = random_predictions()
    found = evaluate(probs, labels)
    losses = example_losses(probs, labels)
    assert set(losses) == {"accuracy", "nll", "brier"}
    for name, values in losses.items():
        assert values.shape == labels.shape
        assert values.mean().item() == pytest.approx(found[name], rel=1e-12)
    assert losses["nll"][3].item() == pytest.approx(-math.log(probs[3, labels[3]].item()))


def random_prediction(num_samples: int = 8, shift: float = 0.0) -> Prediction:
    generator = torch.Generator().manual_seed(3)
    signal = 2 * torch.randn(300, 3, generator=generator)
    logits = shift + signal + torch.randn(num_samples, 300, 3, generator=generator)
    return Prediction(logits, torch.multinomial(signal.softmax(-1), 1, generator=generator).squeeze(-1))


DETECTORS = ("entropy", "mutual_information", "max_prob")


def test_all_metrics() -> None:
    noise = torch.randn(8, 50, 3, generator=torch.Generator().manual_seed(4))
    inside, outside = random_prediction(), Prediction(0.1 * noise)
    found = all_metrics(inside, outside)
    assert inside.labels is not None
    probs, labels = inside.mean_probs, inside.labels
    assert found.items() >= evaluate(probs, labels).items()
    assert found["adaptive_ece"] == adaptive_calibration_error(probs, labels)
    assert found["f1"] == f1_score(probs, labels)
    assert found["matthews"] == matthews_correlation(probs, labels)
    detection = {f"{kind}_auroc_{name}" for kind in ("misclassification", "ood") for name in DETECTORS}
    others = {"adaptive_ece", "f1", "matthews", "aurc", "selective_accuracy_80", "ood_auroc"}
    assert set(found) == {"accuracy", "nll", "ece", "brier"} | others | detection
    # Straight from scikit-learn.
    wrong = probs.argmax(-1) != labels
    entropies = (inside.total_entropy, inside.mutual_information, 1 - probs.max(-1).values)
    for name, scores in zip(DETECTORS, entropies, strict=True):
        expected = sklearn.metrics.roc_auc_score(wrong, scores)
        assert found[f"misclassification_auroc_{name}"] == pytest.approx(expected, rel=1e-9)
    expected = sklearn.metrics.roc_auc_score(
        [0] * 300 + [1] * 50, torch.cat([inside.total_entropy, outside.total_entropy])
    )
    assert found["ood_auroc"] == found["ood_auroc_entropy"] == pytest.approx(expected, rel=1e-12)
    assert found["ood_auroc_entropy"] > 0.9 > found["misclassification_auroc_entropy"] > 0.6
    assert found["aurc"] < 1 - found["accuracy"] < 1 - 0.9 * found["selective_accuracy_80"]
    alone = all_metrics(inside)
    assert alone == {name: value for name, value in found.items() if not name.startswith("ood")}


def test_one_draw_has_no_mutual_information() -> None:
    found = all_metrics(random_prediction(num_samples=1), random_prediction(num_samples=1, shift=0.1))
    assert found["misclassification_auroc_mutual_information"] == 0.5
    assert found["ood_auroc_mutual_information"] == 0.5
    assert found["misclassification_auroc_entropy"] > 0.6


def test_all_metrics_of_perfect_predictions() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    found = all_metrics(Prediction(1000 * torch.nn.functional.one_hot(labels, 3).float().unsqueeze(0), labels))
    aurocs = {name for name in found if "auroc" in name}
    assert len(aurocs) == 3
    assert all(math.isnan(found[name]) for name in aurocs)
    best = {"accuracy": 1, "nll": 0, "ece": 0, "brier": 0, "adaptive_ece": 0, "f1": 1, "matthews": 1, "aurc": 0}
    assert {name: value for name, value in found.items() if name not in aurocs} == best | {"selective_accuracy_80": 1}


def test_all_metrics_of_a_single_wrong_example() -> None:
    found = all_metrics(Prediction(torch.tensor([[[2000.0, 0.0]]]), torch.tensor([1])))
    assert found["nll"] == pytest.approx(-math.log(torch.finfo(torch.double).tiny))
    assert (found["accuracy"], found["aurc"], found["selective_accuracy_80"], found["ece"]) == (0, 1, 0, 1)
    assert (found["f1"], found["matthews"], found["adaptive_ece"], found["brier"]) == (0, 0, 1, 2)
    assert math.isnan(found["misclassification_auroc_entropy"])


def test_all_metrics_need_labels() -> None:
    with pytest.raises(DataError, match=r"no labels.*batches have 'labels'"):
        all_metrics(Prediction(torch.zeros(1, 2, 2)))


def test_rows_outside_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinite in places"):
        all_metrics(random_prediction(), Prediction(torch.full((1, 2, 3), float("nan"))))


@pytest.mark.parametrize("metric", [f1_score, matthews_correlation, adaptive_calibration_error, reliability_table])
def test_every_metric_checks_what_it_is_given(metric: Metric) -> None:
    with pytest.raises(DataError, match=r"metrics need probabilities"):
        metric(torch.ones(0, 3), torch.ones(0, dtype=torch.long))
    with pytest.raises(DataError, match=r"labels run from 0 to 3"):
        metric(torch.full((2, 3), 1 / 3), torch.tensor([0, 3]))


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]).half()])
def test_labels_that_are_no_integers_are_refused(labels: Tensor) -> None:
    probs = torch.tensor([[0.5, 0.5], [0.3, 0.7]])
    for metric in (evaluate, example_losses, accuracy):
        with pytest.raises(DataError, match=r"labels are torch\.float.*labels\.long\(\)"):
            metric(probs, labels)


@pytest.mark.parametrize("labels", [torch.tensor([[0, 1]]), torch.tensor([[0], [1]])])
def test_labels_of_several_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match="as many labels"):
        evaluate(torch.full((len(labels), 2), 0.5), labels)
