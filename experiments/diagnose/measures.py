"""How good the predictions of a run are, in numbers."""

import math
from typing import Any

import torch

from bayes_lora.inference import mean_difference, metric_difference, one_by_one
from bayes_lora.metrics.classification import expected_calibration_error
from bayes_lora.models import Likelihood

Interval = tuple[float, float, float]  # value, and the ends of its 95 % interval; these are NaN where it has none


def intervals(likelihood: Likelihood, prediction: Any) -> dict[str, Interval]:
    """What the likelihood reports of labelled predictions, with 95 % bootstrap intervals over rows.

    Metrics that are means over rows have one, and the calibration error of one class for each row.
    """
    losses, found = likelihood.losses(prediction), {}
    for metric, value in likelihood.metrics(prediction).items():
        low = high = math.nan
        if metric in losses and torch.isfinite(losses[metric]).all():
            # Against a method whose metric is 0, the difference is the metric itself.
            of = mean_difference(losses[metric], torch.zeros_like(losses[metric]))
            low, high = of.low, of.high
        elif metric == "ece" and likelihood.label_dims == ():
            low, high = _of_calibration(likelihood, prediction)
        found[metric] = (value, low, high)
    return found


def _of_calibration(likelihood: Likelihood, prediction: Any) -> tuple[float, float]:
    choices = likelihood.choices(prediction)
    assert choices is not None
    assert choices.labels is not None
    probs, labels = choices.mean_probs, choices.labels
    error = one_by_one(lambda rows: expected_calibration_error(probs[rows], labels[rows]))
    of = metric_difference([error], [lambda rows: torch.zeros(len(rows))], len(labels), num_resamples=500)
    return of.low, of.high
