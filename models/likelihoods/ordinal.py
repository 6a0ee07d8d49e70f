"""One of several grades for each row, in an order: cumulative logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from bayes_lora.checks import require_class_ids
from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.metrics.ordinal import grade_losses, ordinal_metrics
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models.likelihoods.class_likelihood import ClassLikelihood
from bayes_lora.models.likelihoods.words import Words


class Ordinal(ClassLikelihood):
    """Grades 0 to K - 1 of one output f, a regression head, in the plate `data`, scaled by 1 / batch size.

        P(y_i <= k | f_i) = sigmoid(theta_k - f_i),    theta_0 < ... < theta_{K-2}

    The thresholds are points, learned with the posterior, without weight decay, at a learning rate of their own: the
    first theta and the logarithms of the steps between. They start where all grades are equally likely at f = 0.

    Args:
        num_classes: K.

    Attributes:
        first, log_steps: theta_0, (), and ln(theta_k - theta_{k-1}), (K - 2,).

    Raises:
        ConfigurationError: fewer than two grades.

    Source: McCullagh 1980, Regression Models for Ordinal Data, section 2.2 (proportional odds).
    """

    kind = "ordinal"
    ordered = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 2:
            raise ConfigurationError(f"num_classes={num_classes!r} must be an integer of at least 2 grades.")
        self.num_classes = num_classes
        start = (torch.arange(1, num_classes) / num_classes).logit()
        self.first, self.log_steps = nn.Parameter(start[0]), nn.Parameter(start.diff().log())

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """A network does not say how many grades its output stands for.

        Raises:
            LikelihoodError: always.
        """
        raise LikelihoodError("an ordinal likelihood has to know its grades. Build it: Ordinal(num_classes=...).")

    @classmethod
    def from_settings(cls, network: nn.Module, settings: Mapping[str, Any]) -> Self:
        """Of so many grades; the thresholds are in the posterior's file."""
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """The number of grades."""
        return {"num_classes": self.num_classes}

    def start_at(self, labels: Tensor) -> None:
        """Thresholds at which f = 0 says how often each grade occurs, half a row more for each."""
        counts = torch.bincount(labels.reshape(-1), minlength=self.num_classes).to(self.first) + 0.5
        thresholds = (counts.cumsum(0) / counts.sum())[:-1].logit()
        self.first.data.copy_(thresholds[0])
        self.log_steps.data.copy_(thresholds.diff().log())

    @classmethod
    def words(cls, settings: Mapping[str, Any]) -> Words:
        """Grades."""
        return Words(
            answer="a grade",
            label="grade",
            shown=(
                "prediction.mean_probs)  # (example, grade)",
                "prediction.mutual_information)  # (example,), nats: how far the draws disagree",
            ),
            point="network(**batch).logits)  # where the row lies along the grades",
            num_outputs=1,
        )

    @property
    def thresholds(self) -> Tensor:
        """theta, (K - 1,)."""
        return torch.cat([self.first.reshape(1), self.first + self.log_steps.exp().cumsum(0)])

    def log_probs(self, logits: Tensor) -> Tensor:
        """ln P(y = k | f), (..., K), of f (..., 1).

        Between two thresholds a > b of f it is ln(sigmoid(a) sigmoid(-b) (1 - e^(b - a))), which does not cancel where
        both sigmoids are near 1 or 0.
        """
        thresholds = self.thresholds.to(logits)
        distances = thresholds - logits
        below, above = logsigmoid(distances), logsigmoid(-distances)
        steps = torch.log(-torch.expm1(-thresholds.diff()))
        between = below[..., 1:] + above[..., :-1] + steps
        return torch.cat([below[..., :1], between, above[..., -1:]], dim=-1)

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(example,) grades.

        Raises:
            LikelihoodError: a network of several outputs; not one grade for each row, or one that is none.
        """
        if logits.dim() != 2 or logits.shape[-1] != 1:
            raise LikelihoodError(
                f"the network returned logits of shape {tuple(logits.shape)}; grades have one output, (example, 1). "
                "Load it with num_labels=1."
            )
        if labels.numel() != len(logits):
            raise LikelihoodError(
                f"the labels have shape {tuple(labels.shape)} for {len(logits)} rows; there is one grade for each row."
            )
        if labels.is_floating_point():
            raise LikelihoodError(f"labels are {labels.dtype}; grades are integers. Convert them: labels.long().")
        labels = labels.reshape(-1)
        if labels.device.type == "cpu":  # elsewhere the look would stall every step
            remedy = "Build Ordinal(num_classes={needed}), or correct the labels."
            require_class_ids(labels, self.num_classes, LikelihoodError, remedy)
        return labels

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """Categorical over the grades."""
        return dist.Categorical(logits=self.log_probs(logits), validate_args=False)

    def prediction(self, logits: Tensor, labels: Tensor | None) -> Prediction:
        """Probabilities of the grades under every draw; `logits` of it are their logarithms, (sample, example, K)."""
        with torch.no_grad():
            return Prediction.of(self.log_probs(logits).cpu(), labels)

    def labelled(self, prediction: Any, labels: Tensor) -> Prediction:
        """With these grades."""
        found: Prediction = replace(prediction, labels=labels.reshape(-1))
        return found

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See `ordinal_metrics`."""
        return ordinal_metrics(prediction)

    def all_metrics(self, prediction: Any, outside: Any = None) -> dict[str, float]:
        """Those of classes, and those of grades."""
        return super().all_metrics(prediction, outside) | ordinal_metrics(prediction)

    def losses(self, prediction: Any) -> dict[str, Tensor]:
        """Those of classes, and of grades `grade_losses`."""
        return super().losses(prediction) | grade_losses(prediction.mean_probs, prediction.labels)
