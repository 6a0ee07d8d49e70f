"""How good class probabilities are, from stored predictions: all metrics of a method in one place."""

import math
from dataclasses import dataclass

import torch
from sklearn.metrics import f1_score as sklearn_f1
from sklearn.metrics import matthews_corrcoef
from torch import Tensor

from bayes_lora.checks import require_class_ids
from bayes_lora.errors import DataError
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.metrics.uncertainty import (
    area_under_risk_coverage,
    auroc,
    mean_within_ties,
    outside_aurocs,
    selective_accuracy,
    uncertainty_scores,
)

ECE_BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """One row of a reliability table.

    Attributes:
        lower: the bin holds confidences above this; the first one 0 as well.
        upper: and up to this.
        count: rows in it.
        confidence: mean of their largest probability; NaN in an empty bin, as all below.
        accuracy: share of them that is right.
        standard_error: of the accuracy, sqrt(a (1 - a) / n): 0 where all rows are right or all are wrong, which then
            says nothing about how sure the accuracy is.
    """

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float
    standard_error: float


def all_metrics(prediction: Prediction, outside: Prediction | None = None) -> dict[str, float]:
    """Every metric of one method on one set of rows. Shares and areas run from 0 to 1, not in per cent.

        accuracy                 share of rows whose most probable class is the label; ties go to the lower class
        nll                      mean of -ln p(label), nats
        ece                      calibration error of the largest probability, 15 equal-width bins
        brier                    mean of sum_c (p_c - [c = label])^2, 0 to 2
        adaptive_ece             calibration error of the largest probability, 15 bins of equal mass
        f1                       of class 1 for two classes, the mean over classes for more
        matthews                 Matthews' correlation of predicted class and label, -1 to 1
        aurc                     area under the risk-coverage curve by 1 - max probability; lower is better
        selective_accuracy_80    accuracy on the 80 % of the rows with the largest max probability
        misclassification_auroc_entropy, _mutual_information, _max_prob
                                 detection of wrong predictions by each of `uncertainty_scores`, and by _foreignness
        ood_auroc_entropy, _mutual_information, _max_prob
                                 detection of the rows of `outside`; only where it is given
        ood_auroc                the first of them, or that by the predictions' `foreignness` where they have it

    All are of the mean probabilities over draws. The mutual information of a method with one draw is 0 everywhere, so
    its AUROC is .5. Where a metric has no value it is NaN: detection of errors where all predictions are right or all
    are wrong; F1 where class 1 of two is neither label nor prediction.

    Args:
        prediction: labelled rows, in distribution.
        outside: rows from elsewhere, by the same method; their labels are not looked at.

    Raises:
        DataError: no rows, no labels, labels outside the classes, or probabilities that are no numbers.

    Example:
        >>> all_metrics(predict(model, guide, loader), outside=predict(model, guide, other))["aurc"]  # doctest: +SKIP
        0.107
    """
    probs, labels = prediction.mean_probs, known_labels(prediction.labels)
    metrics = evaluate(probs, labels)
    metrics["adaptive_ece"] = adaptive_calibration_error(probs, labels)
    metrics["f1"] = f1_score(probs, labels)
    metrics["matthews"] = matthews_correlation(probs, labels)
    scores, wrong = uncertainty_scores(prediction), probs.argmax(-1) != labels
    metrics["aurc"] = area_under_risk_coverage(scores["max_prob"], wrong)
    metrics["selective_accuracy_80"] = selective_accuracy(scores["max_prob"], wrong, coverage=0.8)
    metrics |= {f"misclassification_auroc_{name}": auroc(score, wrong) for name, score in scores.items()}
    if outside is not None:
        metrics |= outside_aurocs(scores, uncertainty_scores(outside))
    return metrics


def evaluate(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL (nats), ECE (15 bins) and Brier score of probabilities (example, class) for labels (example,).

    Raises:
        DataError: no examples, as many probabilities as labels are not there, or labels outside the classes.
    """
    means = {name: losses.mean().item() for name, losses in example_losses(probs, labels).items()}
    ece = expected_calibration_error(probs, labels)
    return {"accuracy": means["accuracy"], "nll": means["nll"], "ece": ece, "brier": means["brier"]}


def example_losses(probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What `evaluate`'s accuracy, nll and brier are the means of, (example,) each, double precision.

    A paired test of two methods takes these, see `bayes_lora.metrics.bootstrap.mean_difference`.

    Raises:
        DataError: see `evaluate`.
    """
    _check(probs, labels)
    picked = probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    target = torch.nn.functional.one_hot(labels, probs.shape[-1])
    return {
        "accuracy": (probs.argmax(-1) == labels).double(),
        "nll": -picked.clamp_min(torch.finfo(probs.dtype).tiny).double().log(),
        "brier": (probs.double() - target).square().sum(-1),
    }


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """Part of the examples whose most probable class is the label; ties go to the lower class."""
    return example_losses(probs, labels)["accuracy"].mean().item()


def negative_log_likelihood(probs: Tensor, labels: Tensor) -> float:
    """Mean of -ln p(label), nats. A probability of 0 counts as the smallest positive number of its dtype."""
    return example_losses(probs, labels)["nll"].mean().item()


def brier_score(probs: Tensor, labels: Tensor) -> float:
    """Mean of sum_c (p_c - [c = label])^2, between 0 and 2 (Brier 1950, all classes summed)."""
    return example_losses(probs, labels)["brier"].mean().item()


def f1_score(probs: Tensor, labels: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of class 1 for two classes, as GLUE has it for MRPC and QQP; computed by scikit-learn.

    For more classes, the plain mean over those that are a label or a prediction somewhere. NaN where class 1 of two is
    neither: there is nothing to find, and nothing was found.
    """
    _check(probs, labels)
    average = "binary" if probs.shape[-1] == 2 else "macro"
    return float(sklearn_f1(labels.numpy(), probs.argmax(-1).numpy(), average=average, zero_division=math.nan))


def matthews_correlation(probs: Tensor, labels: Tensor) -> float:
    """Correlation of predicted class and label, -1 to 1 (Matthews 1975; Gorodkin 2004 for more than two classes), as
    GLUE has it for CoLA. 0 where labels or predictions are all of one class. Computed by scikit-learn.
    """
    _check(probs, labels)
    predicted = probs.argmax(-1)
    if len(predicted.unique()) == 1 or len(labels.unique()) == 1:
        return 0.0
    return float(matthews_corrcoef(labels.numpy(), predicted.numpy()))


def expected_calibration_error(probs: Tensor, labels: Tensor, num_bins: int = ECE_BINS) -> float:
    """sum_b n_b / n |accuracy_b - confidence_b| over equal-width bins of the largest probability (Naeini et al. 2015).

    The bins are those of `confidence_bins`; empty ones count nothing.
    """
    counts, confidence, correct = calibration_bins(probs, labels, num_bins)
    return (counts * (correct - confidence).abs()).nansum().div(counts.sum()).item()


def adaptive_calibration_error(probs: Tensor, labels: Tensor, num_bins: int = ECE_BINS) -> float:
    """The same sum over bins of equal mass: the rows in order of confidence, cut into `num_bins` runs of like length.

    The ranges are those of Nixon et al. (2019, section 3), on the largest probability only, so that the number
    compares with the ECE. Lengths differ by at most one; with fewer rows than bins, each row has its own. Where a cut
    falls between rows of equal confidence, all of them count as right in the share in which they are right, so the
    order of the rows does not matter.
    """
    _check(probs, labels)
    confidence, predicted = probs.double().max(-1)
    correct = mean_within_ties((predicted == labels).double(), confidence)
    order = confidence.argsort()
    num_rows = len(order)
    bins = torch.arange(num_rows).mul(num_bins).div(num_rows, rounding_mode="floor")
    gaps = torch.zeros(num_bins, dtype=torch.double).index_add(0, bins, (correct - confidence)[order])
    return gaps.abs().sum().div(num_rows).item()


def confidence_bins(confidence: Tensor, num_bins: int = ECE_BINS) -> Tensor:
    """Which of the equal-width bins each confidence lies in, from 0; open on the left and closed on the right."""
    return (confidence * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)


def calibration_bins(probs: Tensor, labels: Tensor, num_bins: int = ECE_BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean confidence and accuracy of each bin (bin,); the last two are NaN where a bin is empty."""
    _check(probs, labels)
    confidence, predicted = probs.double().max(-1)
    bins = confidence_bins(confidence, num_bins)
    counts, total_confidence, total_correct = (
        torch.zeros(num_bins, dtype=torch.double).index_add(0, bins, values)
        for values in (torch.ones_like(confidence), confidence, (predicted == labels).double())
    )
    return counts, total_confidence / counts, total_correct / counts


def reliability_table(probs: Tensor, labels: Tensor, num_bins: int = ECE_BINS) -> list[ReliabilityBin]:
    """Accuracy beside confidence for each of the equal-width bins of `expected_calibration_error`, empty ones too.

    Raises:
        DataError: see `evaluate`.

    Example:
        >>> reliability_table(torch.tensor([[0.04, 0.96], [0.05, 0.95]]), torch.tensor([1, 0]))[-1].accuracy
        0.5
    """
    counts, confidence, correct = calibration_bins(probs, labels, num_bins)
    errors = (correct * (1 - correct) / counts).sqrt()
    return [
        ReliabilityBin(b / num_bins, (b + 1) / num_bins, int(count), *values)
        for b, (count, *values) in enumerate(torch.stack([counts, confidence, correct, errors], dim=-1).tolist())
    ]


def _check(probs: Tensor, labels: Tensor) -> None:
    if probs.dim() != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise DataError(
            f"metrics need probabilities (example, class) and as many labels; got {tuple(probs.shape)} and "
            f"{tuple(labels.shape)}. Pass prediction.mean_probs and prediction.labels of a non-empty, labelled set."
        )
    if not torch.isfinite(probs).all():
        raise DataError(
            "some probabilities are NaN or infinite, so no metric means anything. Look at the fit: its loss or weights "
            "are NaN as well."
        )
    if labels.is_floating_point():
        raise DataError(f"labels are {labels.dtype}; classes are integers. Convert them: labels.long(), from 0 up.")
    require_class_ids(labels, probs.shape[-1], DataError, "Correct the labels.")
