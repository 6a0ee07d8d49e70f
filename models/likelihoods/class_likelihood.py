"""What likelihoods of one class for each row share, however they make probabilities of the network's outputs."""

from typing import Any

import torch
from torch import Tensor

from bayes_lora.checks import require_class_ids
from bayes_lora.errors import LikelihoodError
from bayes_lora.metrics.classification import all_metrics, example_losses
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction, rescaled_classes
from bayes_lora.metrics.uncertainty import uncertainty_scores
from bayes_lora.models.likelihoods.diagnosed import Variable, label_rates
from bayes_lora.models.likelihoods.likelihood import Likelihood


class ClassLikelihood(Likelihood):
    """Its predictions are class probabilities of rows, a `Prediction`."""

    named_dim = "class"
    statistics_called = "rate of labels"

    def summary(self, prediction: Any) -> Tensor:
        """Log probabilities of the posterior predictive, (example, class)."""
        return prediction.log_mean_probs  # type: ignore[no-any-return]

    def of_summary(self, summary: Tensor, labels: Tensor | None) -> Prediction:
        """One draw with these log probabilities."""
        return Prediction.of(summary.unsqueeze(0), labels)

    def unpack(self, packed: Tensor, labels: Tensor | None) -> Prediction:
        """What is packed are logits of classes."""
        return Prediction.of(packed, labels)

    def all_metrics(self, prediction: Any, outside: Any = None) -> dict[str, float]:
        """See `metrics.classification.all_metrics`."""
        return all_metrics(prediction, outside)

    def row_log_density(self, prediction: Any) -> Tensor:
        """Of the labels' classes."""
        labels = known_labels(prediction.labels)
        return prediction.log_mean_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]

    def draw_log_density(self, prediction: Any) -> Tensor:
        """Of the labels' classes."""
        log_probs: Tensor = prediction.logits.double().log_softmax(-1)
        labels = known_labels(prediction.labels).long()
        require_class_ids(labels, log_probs.shape[-1], LikelihoodError, "Correct the labels, or leave them out.")
        return log_probs.gather(-1, labels.expand(len(log_probs), -1).unsqueeze(-1)).squeeze(-1)

    def replicated(self, prediction: Any, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Classes."""
        return prediction.drawn(draw, count, generator)  # type: ignore[no-any-return]

    def label_statistics(self, prediction: Any, labels: Tensor) -> dict[str, Tensor]:
        """Rates of the classes."""
        return label_rates(labels, prediction.logits.shape[-1])

    def predictive_variables(self, prediction: Any) -> dict[str, Variable]:
        """Probabilities."""
        return {"probs": Variable(prediction.probs, ("example", "class"), "class probability")}

    def disagreement(self, prediction: Any) -> Tensor:
        """See `Prediction.mutual_information`."""
        return prediction.mutual_information  # type: ignore[no-any-return]

    def losses(self, prediction: Any) -> dict[str, Tensor]:
        """See `example_losses`."""
        return example_losses(prediction.mean_probs, known_labels(prediction.labels))

    def uncertainty(self, prediction: Any) -> dict[str, Tensor]:
        """See `uncertainty_scores`."""
        return uncertainty_scores(prediction)

    def averaged(self, prediction: Any) -> Tensor:
        """Probabilities."""
        return prediction.probs  # type: ignore[no-any-return]

    def choices(self, prediction: Any) -> Prediction | None:
        """The rows themselves."""
        return prediction  # type: ignore[no-any-return]

    def rescaled(self, prediction: Any, temperature: float) -> Prediction:
        """``q(y) proportional to p(y)^(1 / T)``, p the mean probabilities; one sample."""
        return rescaled_classes(prediction, temperature)
