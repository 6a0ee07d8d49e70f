"""One class for each row."""

from collections.abc import Mapping
from typing import Any, Self

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_lora.checks import require_class_ids
from bayes_lora.errors import LikelihoodError
from bayes_lora.metrics.classification import evaluate
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models.likelihoods.class_likelihood import ClassLikelihood


class Classification(ClassLikelihood):
    """y_i ~ Categorical(softmax(logits_i)) in the plate `data`, scaled by 1 / batch size.

    The negative log-likelihood is the mean over the examples of the batch, as in transformers.
    """

    kind = "classification"

    def __init__(self, network: nn.Module | None = None) -> None:
        """Check that `network`, where given, is a classifier.

        Raises:
            LikelihoodError: one label (a regression head) or a problem type other than single-label classification.
        """
        super().__init__()
        config = getattr(network, "config", None)
        if getattr(config, "num_labels", None) == 1:
            raise LikelihoodError(
                "the network has num_labels=1, a regression head; the categorical likelihood needs two classes or "
                "more. Load it with num_labels=2 (or the number of classes of your task)."
            )
        problem = getattr(config, "problem_type", None)
        if problem not in (None, "single_label_classification"):
            raise LikelihoodError(
                f"the network has problem_type={problem!r}; only 'single_label_classification' is supported. "
                "Set network.config.problem_type accordingly."
            )

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """See `__init__`."""
        return cls(network)

    @classmethod
    def from_settings(cls, network: nn.Module, settings: Mapping[str, Any]) -> Self:
        """There are none; the network is checked as ever."""
        return cls(network, **settings)

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(example,) classes.

        Raises:
            LikelihoodError: logits that are not (example, class); not one label for each row; one outside the
                classes.
        """
        num_examples, num_classes = _shape(logits)
        if labels.numel() != num_examples:
            raise LikelihoodError(
                f"the labels have shape {tuple(labels.shape)} for {num_examples} rows; classification has one class "
                "for each row. Several classes at once are multi-label classification: another likelihood."
            )
        labels = labels.reshape(-1)
        if labels.is_floating_point():
            raise LikelihoodError(
                f"labels are {labels.dtype}; classes are integers. Convert them: labels.long(), if they are whole "
                "numbers from 0 up."
            )
        # On an accelerator this look would stall every step; there the data sets are checked when they are read.
        if labels.device.type == "cpu":
            remedy = "Load the network with num_labels={needed}, or correct the labels."
            require_class_ids(labels, num_classes, LikelihoodError, remedy)
        return labels

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """Categorical(softmax(logits))."""
        return dist.Categorical(logits=logits, validate_args=False)

    def prediction(self, logits: Tensor, labels: Tensor | None) -> Prediction:
        """Class probabilities under every draw."""
        return Prediction.of(logits, labels)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """Accuracy, NLL, ECE and Brier score, see `evaluate`."""
        return evaluate(prediction.mean_probs, prediction.labels)

    def forward(self, logits: Tensor, labels: Tensor | None) -> None:
        """See `Likelihood.forward`; logits that are not (example, class) are refused without labels, too."""
        _shape(logits)
        super().forward(logits, labels)


def _shape(logits: Tensor) -> tuple[int, int]:
    if logits.dim() != 2:
        raise LikelihoodError(
            f"the network returned logits of shape {tuple(logits.shape)}; classification has (example, class). "
            "Load it with AutoModelForSequenceClassification or another classification head."
        )
    num_examples, num_classes = logits.shape
    return num_examples, num_classes
