"""What likelihoods of one class for each row share, however they make probabilities of the network's outputs."""

from typing import Any

from torch import Tensor

from bayes_lora.metrics.classification import all_metrics, example_losses
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction, rescaled_classes
from bayes_lora.metrics.uncertainty import uncertainty_scores
from bayes_lora.models.likelihoods.likelihood import Likelihood


class ClassLikelihood(Likelihood):
    """Its predictions are class probabilities of rows, a `Prediction`."""

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

    def losses(self, prediction: Any) -> dict[str, Tensor]:
        """See `example_losses`."""
        return example_losses(prediction.mean_probs, known_labels(prediction.labels))

    def uncertainty(self, prediction: Any) -> dict[str, Tensor]:
        """See `uncertainty_scores`."""
        return uncertainty_scores(prediction)

    def averaged(self, prediction: Any) -> Tensor:
        """Probabilities."""
        return prediction.probs  # type: ignore[no-any-return]

    def choices(self, prediction: Any) -> Prediction:
        """The rows themselves."""
        return prediction  # type: ignore[no-any-return]

    def rescaled(self, prediction: Any, temperature: float) -> Prediction:
        """``q(y) proportional to p(y)^(1 / T)``, p the mean probabilities; one sample."""
        return rescaled_classes(prediction, temperature)
