"""Real-valued predictions under several draws: what is noise in them, and what is not known."""

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from bayes_lora.errors import DataError


@dataclass(frozen=True)
class GaussianPrediction:
    """``y ~ 1/S sum_s N(m_s, noise_scale^2 I)``: a Gaussian under every draw s.

    Attributes:
        logits: m, (sample, example, output), what the network says.
        labels: (example, output) where the rows had labels, else None.
        noise_scale: standard deviation of the noise, in units of the labels.
    """

    logits: Tensor
    labels: Tensor | None
    noise_scale: float

    @cached_property
    def mean(self) -> Tensor:
        """The posterior predictive's mean, (example, output)."""
        return self.logits.double().mean(0)

    @cached_property
    def epistemic_variance(self) -> Tensor:
        """Variance of the means over draws, (example, output): what more data would take away."""
        return self.logits.double().var(0, correction=0)

    @cached_property
    def total_variance(self) -> Tensor:
        """Of the posterior predictive, (example, output): that over draws plus that of the noise."""
        return self.epistemic_variance + self.noise_scale**2

    @cached_property
    def log_density(self) -> Tensor:
        """ln 1/S sum_s N(y; m_s, noise_scale^2 I) of the labels, (example,), nats.

        Raises:
            DataError: the rows have no labels.
        """
        errors = (self.logits.double() - self._known_labels()) / self.noise_scale
        log_norm = math.log(self.noise_scale) + math.log(2 * math.pi) / 2
        return (-errors.square() / 2 - log_norm).sum(-1).logsumexp(0) - math.log(len(self.logits))

    @property
    def rmse(self) -> float:
        """Root mean square error of the mean, over rows and outputs.

        Raises:
            DataError: the rows have no labels.
        """
        return float((self.mean - self._known_labels()).square().mean().sqrt())

    def _known_labels(self) -> Tensor:
        if self.labels is None:
            raise DataError(
                "the predicted rows have no labels, so no metric can be had. Predict from a loader whose batches have "
                "'labels'."
            )
        return self.labels.double()
