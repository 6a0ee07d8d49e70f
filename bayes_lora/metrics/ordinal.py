"""How good probabilities of grades are, whose order counts."""

import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from bayes_lora.metrics.classification import evaluate
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction


def ordinal_metrics(prediction: Prediction) -> dict[str, float]:
    """What `evaluate` says of classes, and what takes their order into account.

        mae              mean distance of the predictive's median grade to the label, in grades
        rps              ranked probability score, mean of sum_{k < K-1} (P(y <= k) - [label <= k])^2; lower is better
        quadratic_kappa  Cohen's kappa of median grade and label with quadratic weights: 1 agrees, 0 is chance; NaN
                         where all labels and all predictions are one grade

    Raises:
        DataError: see `evaluate`.

    Source: Epstein 1969, A Scoring System for Probability Forecasts of Ranked Categories (rps); Cohen 1968 (kappa).
    """
    probs, labels = prediction.mean_probs, known_labels(prediction.labels)
    found, means = evaluate(probs, labels), grade_losses(probs, labels)
    median = _median(probs)
    constant = len(torch.cat([labels, median]).unique()) < 2
    grades = range(probs.shape[-1])
    kappa = torch.nan if constant else cohen_kappa_score(labels, median, labels=grades, weights="quadratic")
    return {
        **found,
        **{name: float(losses.mean()) for name, losses in means.items()},
        "quadratic_kappa": float(kappa),
    }


def grade_losses(probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What `ordinal_metrics`' mae and rps are the means of, (example,) each, of probabilities (example, grade)."""
    cumulative = probs.cumsum(-1)[:, :-1]
    reached = labels.unsqueeze(-1) <= torch.arange(cumulative.shape[-1])
    return {
        "mae": (_median(probs) - labels).abs().double(),
        "rps": (cumulative - reached.double()).square().sum(-1),
    }


def _median(probs: Tensor) -> Tensor:
    return (probs.cumsum(-1)[:, :-1] < 0.5).sum(-1)
