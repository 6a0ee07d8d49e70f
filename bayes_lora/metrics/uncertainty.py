"""Whether uncertainty points at the right rows: detection of errors and of foreign rows, and selective prediction.

Every function takes uncertainties (example,), larger where the method is less sure. Rows of equal uncertainty have no
order, so what depends on one is the expectation over all orders of such rows, computed exactly: no result depends on
the order of the rows.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.metrics.prediction import Prediction

SELECTIVE_COVERAGE = 0.8
# Nats. Equal draws come out this far apart: the entropy of their mean and the mean of their entropies are rounded
# differently, and their ranks would be noise.
_ROUNDING = 1e-14


def uncertainty_scores(prediction: Prediction) -> dict[str, Tensor]:
    """The uncertainties of every row, (example,) each, double precision.

        entropy               H[E p], of the posterior predictive, nats
        mutual_information    H[E p] - E H[p], nats; below 1e-14 it is rounding and counts as 0
        max_prob              1 - max_c E p_c
        foreignness           the prediction's own, first of all, where it has one

    A method with one draw, or with equal draws, has mutual information 0 everywhere: as a detector, chance.

    Raises:
        DataError: no rows, or logits that are no numbers.
    """
    probs = prediction.mean_probs
    if not len(probs) or not torch.isfinite(probs).all():
        raise DataError(
            f"uncertainties need at least one row and probabilities that are numbers; got {tuple(probs.shape)}, NaN or "
            "infinite in places. Predict rows with a fit whose loss and weights are finite."
        )
    information = prediction.mutual_information
    own = {} if prediction.foreignness is None else {"foreignness": prediction.foreignness}
    return own | {
        "entropy": prediction.total_entropy,
        "mutual_information": information.where(information > _ROUNDING, 0.0),
        # As the sum of the others: 1 - p would be 0 for all rows where p rounds to 1.
        "max_prob": probs.scatter(-1, probs.argmax(-1, keepdim=True), 0.0).sum(-1),
    }


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: P(s+ > s-) + P(s+ = s-) / 2 for a random positive and a random other row.

    .5 is chance, also where all scores are equal; NaN where all rows are positive, or none is.

    Args:
        scores: (example,), larger where `positive` is to be expected.
        positive: (example,), bool: wrong predictions, or rows from out of distribution.

    Raises:
        DataError: not one finite score for each row, or no rows.

    Example:
        >>> auroc(torch.tensor([0.1, 0.7, 0.7]), torch.tensor([False, False, True]))
        0.75
    """
    _check(scores, positive)
    return batched_auroc(scores, positive, torch.arange(len(scores)).unsqueeze(0)).item()


def batched_auroc(scores: Tensor, positive: Tensor, rows: Tensor) -> Tensor:
    """`auroc` of many sets of rows at once, (set,), as a bootstrap needs it.

    From how many positives p_k and others o_k of a set have the k-th least score (Mann and Whitney 1947):
    sum_k p_k (sum_{j<k} o_j + o_k / 2) / (sum_k p_k sum_k o_k). Nothing is checked.

    Args:
        scores: (example,).
        positive: (example,), bool.
        rows: (set, row), indices of examples, which may be there more than once.
    """
    others, positives = _counts(scores, positive, rows)
    pairs = positives * (others.cumsum(-1) - others / 2)
    return pairs.sum(-1) / (positives.sum(-1) * others.sum(-1))


def outside_aurocs(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> dict[str, float]:
    """`out_of_distribution_auroc` by each score, ``ood_auroc_NAME``, and by the first of them, ``ood_auroc``.

    Args:
        inside: scores (example,) by name, of rows like those of training; the first is what foreign rows are told by.
        outside: the same scores of rows from elsewhere.
    """
    found = {f"ood_auroc_{name}": out_of_distribution_auroc(inside[name], outside[name]) for name in inside}
    return {"ood_auroc": next(iter(found.values())), **found} if found else {}


def out_of_distribution_auroc(inside: Tensor, outside: Tensor) -> float:
    """`auroc` of telling rows from out of distribution by their larger scores, (example,) each."""
    is_outside = torch.cat([torch.zeros_like(inside, dtype=torch.bool), torch.ones_like(outside, dtype=torch.bool)])
    return auroc(torch.cat([inside, outside]), is_outside)


def risk_coverage_curve(scores: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """(coverage, risk), (example,) each: the share kept, and the share of those kept that is wrong.

    Entry k - 1 keeps the k least uncertain rows: coverage k / n, risk 1/k sum_{i <= k} [row i is wrong] (El-Yaniv and
    Wiener 2010; Geifman and El-Yaniv 2017, section 2). Within rows of equal score, the expectation over their order.

    Args:
        scores: (example,), larger where less certain.
        wrong: (example,), bool: the prediction is not the label.

    Raises:
        DataError: not one finite score for each row, or no rows.
    """
    _check(scores, wrong)
    ordered, order = scores.sort()
    first, last = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
    errors = torch.nn.functional.pad(wrong[order].double().cumsum(0), (1, 0))  # among the k most certain, k from 0
    before = errors[first]
    kept = torch.arange(1, len(scores) + 1, dtype=torch.double)
    # Of m rows taken at random from g equally uncertain ones with e errors, e m / g are wrong on average.
    return kept / len(scores), (before + (errors[last] - before) * (kept - first) / (last - first)) / kept


def area_under_risk_coverage(scores: Tensor, wrong: Tensor) -> float:
    """AURC = 1/n sum_k risk(k / n), between 0 (no errors) and 1, lower is better (Geifman et al. 2019, section 3).

    With scores that say nothing it is the error rate. A single row gives 0 or 1.

    Raises:
        DataError: see `risk_coverage_curve`.

    Example:
        >>> area_under_risk_coverage(torch.tensor([0.1, 0.2]), torch.tensor([False, True]))
        0.25
    """
    return risk_coverage_curve(scores, wrong)[1].mean().item()


def batched_area_under_risk_coverage(scores: Tensor, wrong: Tensor, rows: Tensor) -> Tensor:
    """`area_under_risk_coverage` of many sets of n rows at once, (set,), as a bootstrap needs it.

    Where g rows with e errors among them have the same score, and K rows with E errors a lower one, their part is
    sum_{m=1..g} (E + e m / g) / (K + m) = e + (E - e K / g) (H_{K+g} - H_K), with H_k = 1 + 1/2 + ... + 1/k; the
    area is the sum of the parts by n. Nothing is checked.

    Args:
        scores: (example,).
        wrong: (example,), bool.
        rows: (set, row), indices of examples, which may be there more than once.
    """
    right, errors = _counts(scores, wrong, rows)
    tied = right + errors
    kept = tied.cumsum(-1)
    harmonic = torch.nn.functional.pad((1 / torch.arange(1, rows.shape[-1] + 1, dtype=torch.double)).cumsum(0), (1, 0))
    lower, lower_errors = kept - tied, errors.cumsum(-1) - errors
    steps = harmonic[kept.long()] - harmonic[lower.long()]
    parts = errors + (lower_errors - errors * lower / tied.clamp(min=1)) * steps
    return parts.sum(-1) / rows.shape[-1]


def selective_accuracy(scores: Tensor, wrong: Tensor, coverage: float = SELECTIVE_COVERAGE) -> float:
    """Accuracy on the least uncertain rows, as few of them as make up `coverage` of all: ceil(coverage n).

    Raises:
        ConfigurationError: a coverage not above 0 and at most 1.
        DataError: see `risk_coverage_curve`.
    """
    if not 0 < coverage <= 1:
        raise ConfigurationError(f"coverage={coverage!r} must lie above 0 and at most at 1: 0.8 keeps four of five.")
    risk = risk_coverage_curve(scores, wrong)[1]
    # .7 * 10 is a little more than 7 in binary.
    kept = max(1, math.ceil(coverage * len(risk) - 1e-9))
    return 1 - risk[kept - 1].item()


def mean_within_ties(values: Tensor, keys: Tensor) -> Tensor:
    """Each value (example,) replaced by the mean over the rows that have the same key."""
    _, group, counts = keys.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=values.dtype).index_add(0, group, values)
    return sums.div(counts)[group]


def _counts(scores: Tensor, events: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """How many rows of each set are no event, and how many are one, at every score from the least on: (set, score)."""
    values, level = scores.unique(return_inverse=True)
    counts = torch.zeros(len(rows), 2 * len(values), dtype=torch.double)
    counts.scatter_add_(-1, (2 * level + events)[rows], torch.ones(rows.shape, dtype=torch.double))
    without, with_events = counts.unflatten(-1, (-1, 2)).unbind(-1)
    return without, with_events


def _check(scores: Tensor, events: Tensor) -> None:
    if scores.dim() != 1 or scores.shape != events.shape or not len(scores) or events.dtype != torch.bool:
        raise DataError(
            f"a detector needs scores (example,) and as many truth values; got {tuple(scores.shape)} and "
            f"{tuple(events.shape)}, {events.dtype}. Pass uncertainty_scores(prediction)['entropy'] and "
            "prediction.mean_probs.argmax(-1) != prediction.labels, of at least one row."
        )
    if not torch.isfinite(scores).all():
        raise DataError("some scores are NaN or infinite, so the rows have no order. Look at the fit they come from.")
