"""Real numbers for each row, with Gaussian noise of known size."""

from dataclasses import dataclass
from typing import Any, Self

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_lora.checks import require_positive
from bayes_lora.errors import LikelihoodError
from bayes_lora.metrics.regression import GaussianPrediction
from bayes_lora.models.likelihoods.likelihood import Likelihood


@dataclass(frozen=True)
class GaussianRegression(Likelihood):
    """``y_i ~ N(logits_i, noise_scale^2 I)`` in the plate `data`, scaled by 1 / batch size.

    Attributes:
        noise_scale: standard deviation of the labels, known.

    Raises:
        ConfigurationError: a noise_scale not above 0.
    """

    noise_scale: float

    kind = "gaussian_regression"

    def __post_init__(self) -> None:
        require_positive("noise_scale", self.noise_scale)

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """Noise of 1: half the squared error, but for a constant, as in a regression head of transformers."""
        return cls(1.0)

    def settings(self) -> dict[str, Any]:
        """The noise scale."""
        return {"noise_scale": self.noise_scale}

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(example, output).

        Raises:
            LikelihoodError: as many labels as outputs are needed.
        """
        if labels.numel() != logits.numel():
            raise LikelihoodError(
                f"the labels have shape {tuple(labels.shape)}, the network's outputs {tuple(logits.shape)}. Pass "
                "one real number for each output of each row."
            )
        return labels.reshape(logits.shape)

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """N(logits, noise_scale^2 I)."""
        return dist.Normal(logits, self.noise_scale).to_event(1)

    def prediction(self, logits: Tensor, labels: Tensor | None) -> GaussianPrediction:
        """Means of y under every draw, with the noise."""
        known = None if labels is None else labels.reshape(logits.shape[1:])
        return GaussianPrediction(logits, known, self.noise_scale)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """NLL of the posterior predictive, and root mean square error of its mean."""
        return {"nll": -float(prediction.log_density.mean()), "rmse": prediction.rmse}
