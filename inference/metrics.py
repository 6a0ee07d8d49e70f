"""How good class probabilities are, from stored predictions."""

import torch
from torch import Tensor

from bayes_lora.errors import DataError

ECE_BINS = 15


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """Part of the examples whose most probable class is the label; ties go to the lower class."""
    return (probs.argmax(-1) == labels).double().mean().item()


def negative_log_likelihood(probs: Tensor, labels: Tensor) -> float:
    """Mean of -ln p(label), nats. A probability of 0 counts as the smallest positive number of its dtype."""
    picked = probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -picked.clamp_min(torch.finfo(probs.dtype).tiny).double().log().mean().item()


def brier_score(probs: Tensor, labels: Tensor) -> float:
    """Mean of sum_c (p_c - [c = label])^2, between 0 and 2 (Brier 1950, all classes summed)."""
    target = torch.nn.functional.one_hot(labels, probs.shape[-1])
    return (probs.double() - target).square().sum(-1).mean().item()


def expected_calibration_error(probs: Tensor, labels: Tensor, num_bins: int = ECE_BINS) -> float:
    """sum_b n_b / n |accuracy_b - confidence_b| over equal-width bins of the largest probability (Naeini et al. 2015).

    Bins are open on the left and closed on the right; empty bins count nothing.
    """
    counts, confidence, correct = calibration_bins(probs, labels, num_bins)
    return (counts * (correct - confidence).abs()).nansum().div(counts.sum()).item()


def calibration_bins(probs: Tensor, labels: Tensor, num_bins: int = ECE_BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean confidence and accuracy of each bin (bin,); the last two are NaN where a bin is empty."""
    confidence, predicted = probs.double().max(-1)
    bins = (confidence * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)
    counts, total_confidence, total_correct = (
        torch.zeros(num_bins, dtype=torch.double).index_add(0, bins, values)
        for values in (torch.ones_like(confidence), confidence, (predicted == labels).double())
    )
    return counts, total_confidence / counts, total_correct / counts


def evaluate(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL (nats), ECE (15 bins) and Brier score of probabilities (example, class) for labels (example,).

    Raises:
        DataError: no examples, as many probabilities as labels are not there, or labels outside the classes.
    """
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
    if not 0 <= labels.min() <= labels.max() < probs.shape[-1]:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {probs.shape[-1]} classes, 0 to "
            f"{probs.shape[-1] - 1}. Correct the labels."
        )
    return {
        "accuracy": accuracy(probs, labels),
        "nll": negative_log_likelihood(probs, labels),
        "ece": expected_calibration_error(probs, labels),
        "brier": brier_score(probs, labels),
    }
