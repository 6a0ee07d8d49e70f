"""Any number of labels for each row."""

from collections.abc import Mapping
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_lora.errors import LikelihoodError
from bayes_lora.metrics.multi_label import MultiLabelPrediction
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models.likelihoods.diagnosed import Variable
from bayes_lora.models.likelihoods.likelihood import Likelihood
from bayes_lora.models.likelihoods.words import Words


class MultiLabel(Likelihood):
    """``y_il ~ Bernoulli(sigmoid(logits_il))``, independent over labels l, in the plate `data`, scaled by 1/batch size.

    The negative log-likelihood is the mean over rows of the sum over labels; the loss of transformers is the mean over
    both, and so smaller by the number of labels.
    """

    kind = "multi_label"
    label_dims = ("label",)
    named_dim = "label"
    statistics_called = "rate of each label"

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """Of any number of outputs, each a label.

        Raises:
            LikelihoodError: a problem type other than multi-label classification.
        """
        problem = getattr(getattr(network, "config", None), "problem_type", None)
        if problem not in (None, "multi_label_classification"):
            raise LikelihoodError(
                f"the network has problem_type={problem!r}; several labels for a row are 'multi_label_classification'. "
                "Set network.config.problem_type accordingly."
            )
        return cls()

    @classmethod
    def words(cls, settings: Mapping[str, Any]) -> Words:
        """Labels, each with its own probability."""
        return Words(
            answer="any number of labels",
            label="label",
            shown=(
                "prediction.mean_probs)  # (example, label)",
                "prediction.mutual_information)  # (example, label), nats: how far the draws disagree",
            ),
            point="network(**batch).logits.sigmoid())",
        )

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(example, label), 0 or 1, of the logits' type.

        Raises:
            LikelihoodError: not one 0 or 1 for each label of each row.
        """
        if labels.shape != logits.shape:
            raise LikelihoodError(
                f"the labels have shape {tuple(labels.shape)}, the network's outputs {tuple(logits.shape)}. Pass a 0 "
                "or a 1 for each label of each row (multi-hot)."
            )
        # On an accelerator this look would stall every step; there the data sets are checked when they are read.
        if labels.device.type == "cpu" and not ((labels == 0) | (labels == 1)).all():
            raise LikelihoodError("labels must be 0 or 1, one for each label of each row (multi-hot).")
        return labels.to(logits.dtype)

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """Bernoulli for each label."""
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)

    def prediction(self, logits: Tensor, labels: Tensor | None) -> MultiLabelPrediction:
        """The labels' probabilities under every draw."""
        return MultiLabelPrediction(logits, None if labels is None else labels.reshape(logits.shape[1:]))

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See `MultiLabelPrediction.metrics`."""
        return prediction.metrics()  # type: ignore[no-any-return]

    def draw_log_density(self, prediction: Any) -> Tensor:
        """Of all labels of a row together."""
        return prediction.draw_log_density  # type: ignore[no-any-return]

    def replicated(self, prediction: Any, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Zeros and ones."""
        return prediction.drawn(draw, count, generator)  # type: ignore[no-any-return]

    def label_statistics(self, prediction: Any, labels: Tensor) -> dict[str, Tensor]:
        """The share of rows that have each label."""
        return {f"label {index}": of.double().mean(1) for index, of in enumerate(labels.unbind(-1))}

    def predictive_variables(self, prediction: Any) -> dict[str, Variable]:
        """Probabilities."""
        return {"probs": Variable(prediction.probs, ("example", "label"), "probability of the label")}

    def disagreement(self, prediction: Any) -> Tensor:
        """The sum over labels."""
        return prediction.mutual_information.sum(-1)  # type: ignore[no-any-return]

    def losses(self, prediction: Any) -> dict[str, Tensor]:
        """NLL, share of labels that are right, and Brier score."""
        return prediction.losses()  # type: ignore[no-any-return]

    def uncertainty(self, prediction: Any) -> dict[str, Tensor]:
        """Entropy and mutual information, nats, of all labels of a row together."""
        return {
            "entropy": prediction.total_entropy.sum(-1),
            "mutual_information": prediction.mutual_information.sum(-1),
        }

    def averaged(self, prediction: Any) -> Tensor:
        """Probabilities."""
        return prediction.probs  # type: ignore[no-any-return]

    def choices(self, prediction: Any) -> Prediction:
        """Every label of every row: has it, or has it not."""
        logits = prediction.logits.flatten(1)
        labels = None if prediction.labels is None else prediction.labels.reshape(-1).long()
        return Prediction(
            torch.stack([torch.zeros_like(logits), logits], dim=-1),
            labels,
            kl_temperature=prediction.kl_temperature,
            joint=prediction.joint,
            block_size=prediction.block_size,
        )

    def rescaled(self, prediction: Any, temperature: float) -> MultiLabelPrediction:
        """``logit q = logit(p) / T`` for each label, p its mean probability; one sample."""
        given = self.choices(prediction).log_mean_probs  # (row x label, 2)
        scaled = (given[:, 1] - given[:, 0]).reshape(1, *prediction.logits.shape[1:]) / temperature
        return MultiLabelPrediction(scaled, prediction.labels)
