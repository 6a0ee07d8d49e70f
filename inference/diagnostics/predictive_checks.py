"""Posterior-predictive checks: do labels that the model itself would draw look like those observed?"""

import torch
from torch import Tensor

from bayes_lora.checks import require_count
from bayes_lora.inference.diagnostics.replicated_labels import PredictiveCheck, against_replicates, require_labels
from bayes_lora.metrics.classification import confidence_bins
from bayes_lora.metrics.prediction import Prediction


def check_label_rates(
    prediction: Prediction, *, num_replicates: int = 4000, seed: int = 0, failure_rate: float = 0.01
) -> PredictiveCheck:
    """Share of rows with each label: observed against replicated.

    A replicate takes one draw of the posterior, and a label ``y_rep_i ~ Categorical(p_i)`` of every row under it.

        p = 2 min(P(T(y_rep) >= T(y)), P(T(y_rep) <= T(y)))

    It can tell that the model expects another mix of classes. On rows held out that is a shift of the labels or a bias
    of the classifier. On the rows trained on it can hardly fail, since a fitted bias reproduces their rates: the data
    are used twice, and p is then larger than uniform (Meng 1994). It cannot tell whether the right rows get the
    right labels. And a posterior that is much too wide passes: its draws predict so many rates that any is in line.

    Args:
        prediction: labelled rows, of independent labels, best held out.
        num_replicates: replicates; as many as the failure rate needs to be resolved for every class.
        seed: of the replicates.
        failure_rate: probability that a model which is right is flagged, at most.

    Raises:
        DataError: rows without labels, or probabilities or labels that make no sense.
        ConfigurationError: draws that are not joint (see `Prediction.joint`), too few replicates for the failure rate,
            or an option out of range.

    Source: Gelman, Meng & Stern, "Posterior predictive assessment of model fitness", Statistica Sinica 6 (1996).

    Example:
        >>> check_label_rates(predict(model, guide, held_out)).p_values  # doctest: +SKIP
        (0.31, 0.31)
    """
    labels = require_labels(prediction)
    num_classes = prediction.logits.shape[-1]
    classes = torch.arange(num_classes)

    def rates(drawn: Tensor) -> Tensor:
        return torch.stack([(drawn == c).double().mean(-1) for c in classes], dim=-1)

    names = tuple(f"label {c}" for c in range(num_classes))
    counts = (len(labels),) * num_classes
    return against_replicates("rate of labels", names, counts, rates, prediction, num_replicates, seed, failure_rate)


def check_accuracy(
    prediction: Prediction, *, num_replicates: int = 4000, seed: int = 0, failure_rate: float = 0.01
) -> PredictiveCheck:
    """Accuracy of the posterior predictive: observed against what the model predicts of itself.

    The prediction of a row is the class of the largest mean probability, as in `metrics.accuracy`. Were the model
    right, it would be right as often as that probability says: the replicated mean is the mean confidence.

    It can tell overconfidence (observed below predicted) from underconfidence. It cannot tell where: see
    `check_confidence`; nor, again, that a posterior is much too wide. Arguments, errors and source are those of
    `check_label_rates`.

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
    num_replicates: int = 4000,
    seed: int = 0,
    failure_rate: float = 0.01,
) -> PredictiveCheck:
    """The confidence histogram: for the rows of each range of confidence, accuracy observed against replicated.

    Ranges of the largest mean probability are of equal width, open below and closed above, as in `reliability_table`;
    empty ones are left out. `low` to `high` of each is what the accuracy of a calibrated classifier with these rows
    looks like: the consistency bars of a reliability diagram.

    It can tell at which confidence the model is off. It cannot tell much of ranges with few rows, whose bars are wide,
    nor of calibration by class or by group. Other arguments, errors and source are those of `check_label_rates`.

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
