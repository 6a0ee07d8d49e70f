"""Posterior-predictive checks: do labels that the model itself would draw look like those observed?"""

from typing import Any

import torch
from torch import Tensor

from bayes_lora.checks import require_count
from bayes_lora.errors import LikelihoodError
from bayes_lora.inference.diagnostics.replicated_labels import PredictiveCheck, against_replicates, require_labels
from bayes_lora.metrics.classification import confidence_bins
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.metrics.regression import RegressionPrediction
from bayes_lora.models import Classification, Likelihood

_INTERVALS = (0.5, 0.9)


def check_labels(
    prediction: Any,
    likelihood: Likelihood,
    *,
    num_replicates: int | None = None,
    seed: int = 0,
    failure_rate: float = 0.01,
) -> PredictiveCheck:
    """What the labels are like, of every kind, observed against replicated: see `Likelihood.label_statistics`.

    Rates of classes, of rows, words or labels; of numbers mean and standard deviation over the rows. A replicate takes
    one draw of the posterior, and under it a label of every row, noise and all.

        p = 2 min(P(T(y_rep) >= T(y)), P(T(y_rep) <= T(y)))

    It can tell that the model expects other labels as a whole. On rows held out that is a shift of the labels or a bias
    of the network. On the rows trained on it can hardly fail, since a fitted bias reproduces their rates: the data
    are used twice, and p is then larger than uniform (Meng 1994). It cannot tell whether the right rows get the
    right labels. And a posterior that is much too wide passes: its draws predict so much that anything is in line.

    Args:
        prediction: labelled rows, of independent labels, best held out.
        likelihood: of the prediction.
        num_replicates: replicates, as many as the failure rate needs to be resolved for every statistic; by default
            that, and no fewer than 4000.
        seed: of the replicates.
        failure_rate: probability that a model which is right is flagged, at most.

    Raises:
        DataError: rows without labels, or probabilities or labels that make no sense.
        LikelihoodError: a prediction that keeps too little to draw labels from: of a language model.
        ConfigurationError: draws that are not joint (see `Prediction.joint`), too few replicates for the failure rate,
            or an option out of range.

    Source: Gelman, Meng & Stern, "Posterior predictive assessment of model fitness", Statistica Sinica 6 (1996).

    Example:
        >>> check_labels(predict(model, guide, held_out), model.likelihood).p_values  # doctest: +SKIP
        (0.31, 0.31)
    """
    labels, choices = known_labels(prediction.labels), likelihood.choices(prediction)
    if choices is not None:
        require_labels(choices)
    if likelihood.replicated(prediction, 0, 1, torch.Generator()) is None:
        raise LikelihoodError(
            f"predictions of {type(likelihood).__name__} keep too little to draw labels from, to compare with others. "
            "check_surprise says whether texts are as likely as predicted."
        )
    names = tuple(likelihood.label_statistics(prediction, labels.unsqueeze(0)))

    def drawn(draw: int, count: int, generator: torch.Generator) -> Tensor:
        replicated = likelihood.replicated(prediction, draw, count, generator)
        assert replicated is not None
        return replicated

    def statistics(of: Tensor) -> Tensor:
        return torch.stack(list(likelihood.label_statistics(prediction, of).values()), dim=-1)

    counts = (likelihood.num_observations(labels),) * len(names)
    what, options = likelihood.statistics_called, (num_replicates, seed, failure_rate)
    return against_replicates(what, names, counts, statistics, prediction, *options, drawn)


def check_label_rates(
    prediction: Prediction, *, num_replicates: int | None = None, seed: int = 0, failure_rate: float = 0.01
) -> PredictiveCheck:
    """Share of rows with each class: observed against replicated. It is `check_labels` of classes.

    Arguments, errors and source are those of `check_labels`.

    Example:
        >>> check_label_rates(predict(model, guide, held_out)).p_values  # doctest: +SKIP
        (0.31, 0.31)
    """
    require_labels(prediction)
    return check_labels(
        prediction, Classification(), num_replicates=num_replicates, seed=seed, failure_rate=failure_rate
    )


def check_intervals(
    prediction: RegressionPrediction, *, num_replicates: int | None = None, seed: int = 0, failure_rate: float = 0.01
) -> PredictiveCheck:
    """Share of numbers in the central intervals of the posterior predictive: observed against replicated.

    The intervals, of 50 % and 90 %, stay as they are, and labels are drawn anew as in `check_labels`.

    It can tell overconfidence, fewer labels inside than replicated, from underconfidence, and whether it is of the
    middle or of the tails. It cannot tell where, nor see a bias apart from a noise that is too small; `loo_pit` does.
    Other arguments, errors and source are those of `check_labels`.

    Example:
        >>> check_intervals(predict(model, guide, held_out)).observed  # doctest: +SKIP
        (0.52, 0.87)
    """
    labels = known_labels(prediction.labels)
    bounds = [prediction.interval(probability) for probability in _INTERVALS]

    def shares(of: Tensor) -> Tensor:
        inside = [((low <= of) & (of <= high)).double().flatten(1).mean(-1) for low, high in bounds]
        return torch.stack(inside, dim=-1)

    names = tuple(f"the central {probability:.0%}" for probability in _INTERVALS)
    counts = (labels.numel(),) * len(names)
    what = "share of labels in intervals"
    return against_replicates(what, names, counts, shares, prediction, num_replicates, seed, failure_rate)


def check_accuracy(
    prediction: Prediction, *, num_replicates: int | None = None, seed: int = 0, failure_rate: float = 0.01
) -> PredictiveCheck:
    """Accuracy of the posterior predictive: observed against what the model predicts of itself.

    The prediction of a row is the class of the largest mean probability, as in `metrics.accuracy`. Were the model
    right, it would be right as often as that probability says: the replicated mean is the mean confidence. Of words,
    and of several labels for a row, pass ``likelihood.choices(prediction)``.

    It can tell overconfidence (observed below predicted) from underconfidence. It cannot tell where: see
    `check_confidence`; nor, again, that a posterior is much too wide. Arguments, errors and source are those of
    `check_labels`.

    Example:
        >>> check_accuracy(predict(model, guide, held_out)).flagged  # doctest: +SKIP
        False
    """
    labels = require_labels(prediction)
    predicted = prediction.mean_probs.argmax(-1)

    def share(drawn: Tensor) -> Tensor:
        return (drawn == predicted).double().mean(-1, keepdim=True)

    counts = (len(labels),)
    return against_replicates("accuracy", ("all rows",), counts, share, prediction, num_replicates, seed, failure_rate)


def check_confidence(
    prediction: Prediction,
    *,
    num_bins: int = 10,
    num_replicates: int | None = None,
    seed: int = 0,
    failure_rate: float = 0.01,
) -> PredictiveCheck:
    """The confidence histogram: for the rows of each range of confidence, accuracy observed against replicated.

    Ranges of the largest mean probability are of equal width, open below and closed above, as in `reliability_table`;
    empty ones are left out. `low` to `high` of each is what the accuracy of a calibrated classifier with these rows
    looks like: the consistency bars of a reliability diagram.

    It can tell at which confidence the model is off. It cannot tell much of ranges with few rows, whose bars are wide,
    nor of calibration by class or by group. Other arguments, errors and source are those of `check_labels`.

    Source: Brocker & Smith, "Increasing the reliability of reliability diagrams", Weather and Forecasting 22 (2007).

    Example:
        >>> check = check_confidence(predict(model, guide, held_out))  # doctest: +SKIP
        >>> dict(zip(check.names, check.counts))  # doctest: +SKIP
        {'confidence 0.8 to 0.9': 31, 'confidence 0.9 to 1.0': 377}
    """
    require_labels(prediction)
    require_count("num_bins", num_bins)
    confidence, predicted = prediction.mean_probs.max(-1)
    bins = confidence_bins(confidence, num_bins)
    used, members, counts = bins.unique(return_inverse=True, return_counts=True)

    def shares(drawn: Tensor) -> Tensor:
        right = (drawn == predicted).double()
        return right.new_zeros(len(drawn), len(used)).index_add(1, members, right).div(counts)

    names = tuple(f"confidence {b / num_bins:g} to {(b + 1) / num_bins:g}" for b in used.tolist())
    sizes = tuple(counts.tolist())
    return against_replicates(
        "accuracy by confidence", names, sizes, shares, prediction, num_replicates, seed, failure_rate
    )
