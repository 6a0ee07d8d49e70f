"""Several labels for each row under several draws: how likely each is, what is not known, and how good that is."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bayes_lora.errors import DataError
from bayes_lora.metrics.classification import expected_calibration_error
from bayes_lora.metrics.drawn_prediction import DrawnPrediction
from bayes_lora.metrics.labels import known_labels


@dataclass(frozen=True)
class MultiLabelPrediction(DrawnPrediction):
    """Probabilities of every label of every example under every draw; given a draw, labels are independent.

    Attributes:
        logits: (sample, example, label).
        labels: (example, label), 0 or 1, where the rows had labels, else None.
    """

    logits: Tensor
    labels: Tensor | None

    @cached_property
    def probs(self) -> Tensor:
        """(sample, example, label), in double precision."""
        return self.logits.double().sigmoid()

    @cached_property
    def mean_probs(self) -> Tensor:
        """Of the posterior predictive, (example, label)."""
        return self.probs.mean(0)

    @cached_property
    def total_entropy(self) -> Tensor:
        """H[E p] of each label, (example, label), nats."""
        return _entropy(self.mean_probs)

    @cached_property
    def aleatoric_entropy(self) -> Tensor:
        """E H[p] of each label, (example, label), nats."""
        return _entropy(self.probs).mean(0)

    @cached_property
    def mutual_information(self) -> Tensor:
        """Of each label and the draw, (example, label), nats: how far the draws disagree."""
        return self.total_entropy - self.aleatoric_entropy

    @cached_property
    def draw_log_density(self) -> Tensor:
        """ln prod_l p(y_l | s) of the labels under every draw, (sample, example), nats.

        Raises:
            DataError: the rows have no labels.
        """
        labels, logits = known_labels(self.labels).double(), self.logits.double()
        losses = binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none")
        return -losses.sum(-1)

    @cached_property
    def log_density(self) -> Tensor:
        """ln 1/S sum_s prod_l p(y_l | s) of the labels, (example,), nats: under draws that differ, labels depend on
        each other.

        Raises:
            DataError: the rows have no labels.
        """
        return self.draw_log_density.logsumexp(0) - math.log(len(self.logits))

    def drawn(self, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Labels of every example under one draw, (count, example, label), 0 or 1."""
        probs = self.probs[draw]
        chosen = torch.rand((count, *probs.shape), dtype=probs.dtype, generator=generator)
        return (chosen < probs).long()

    def metrics(self) -> dict[str, float]:
        """What an evaluation reports. A label is predicted where its probability is above 1/2.

            nll            mean over rows of -ln p(all labels of the row), nats
            accuracy       share of labels of all rows that are right (1 - Hamming loss)
            subset_accuracy share of rows all of whose labels are right
            micro_f1, macro_f1  F1 of all labels together, and the mean of each label's; 0 for one never predicted
            macro_auroc    mean over labels of the area under the ROC curve; without labels that all or no rows have,
                           NaN where none is left
            ece            calibration error of all labels together, by the probability of the likelier answer, 15 bins
            brier          mean of (p - y)^2 over labels and rows

        Raises:
            DataError: the rows have no labels, or there are none, or probabilities are no numbers.
        """
        labels, probs = known_labels(self.labels).long(), self.mean_probs
        if not len(labels) or not torch.isfinite(probs).all():
            raise DataError(
                "metrics need at least one row and probabilities that are numbers. Predict rows with a fit whose loss "
                "and weights are finite."
            )
        predicted = (probs > 0.5).long()
        right = predicted == labels
        both = torch.stack([1 - probs, probs], dim=-1).flatten(0, 1)
        varying = [label for label in range(labels.shape[-1]) if 0 < int(labels[:, label].sum()) < len(labels)]
        areas = [roc_auc_score(labels[:, label], probs[:, label]) for label in varying]
        return {
            **{name: float(losses.mean()) for name, losses in self.losses().items()},
            "subset_accuracy": float(right.all(-1).double().mean()),
            "micro_f1": float(f1_score(labels, predicted, average="micro", zero_division=0)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
            "macro_auroc": sum(areas) / len(areas) if areas else math.nan,
            "ece": expected_calibration_error(both, labels.reshape(-1)),
        }

    def losses(self) -> dict[str, Tensor]:
        """What nll, accuracy and brier of `metrics` are the means of, (example,) each.

        Raises:
            DataError: the rows have no labels.
        """
        labels, probs = known_labels(self.labels), self.mean_probs
        return {
            "nll": -self.log_density,
            "accuracy": ((probs > 0.5) == labels.bool()).double().mean(-1),
            "brier": (probs - labels).square().mean(-1),
        }


def _entropy(probs: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(probs) + torch.special.entr(1 - probs)
    return found
