"""Real numbers for each row, with noise of heavy tails."""

from dataclasses import replace
from typing import Any

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.metrics.regression import RegressionPrediction
from bayes_lora.models.likelihoods.gaussian_regression import GaussianRegression


class StudentTRegression(GaussianRegression):
    """``(y_i - c - u logits_i) / sigma ~ t(nu)``: as `GaussianRegression`, but single labels far off weigh little.

    Args:
        noise_scale: sigma; the noise's standard deviation is ``sigma sqrt(nu / (nu - 2))``.
        degrees_of_freedom: nu, above 2, so that it has one. The larger, the more Gaussian.
        learned: see `GaussianRegression`.
        num_outputs: see `GaussianRegression`.

    Raises:
        ConfigurationError: degrees of freedom of at most 2; and see `GaussianRegression`.

    Source: Lange, Little and Taylor 1989, Robust Statistical Modeling Using the t Distribution.
    """

    kind = "student_t_regression"

    def __init__(
        self, noise_scale: float = 1.0, degrees_of_freedom: float = 4.0, *, learned: bool = False, num_outputs: int = 1
    ) -> None:
        super().__init__(noise_scale, learned=learned, num_outputs=num_outputs)
        if not degrees_of_freedom > 2:
            raise ConfigurationError(
                f"degrees_of_freedom={degrees_of_freedom!r} leaves the noise without a variance. Give more than 2."
            )
        self.degrees_of_freedom = float(degrees_of_freedom)

    def settings(self) -> dict[str, Any]:
        """Those of `GaussianRegression`, and nu."""
        return {**super().settings(), "degrees_of_freedom": self.degrees_of_freedom}

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """t(nu) at c + u logits, of scale sigma."""
        scale = self.noise_scale.to(logits)
        return dist.StudentT(self.degrees_of_freedom, self.locations(logits), scale, validate_args=False).to_event(1)

    def of_locations(self, locations: Tensor, labels: Tensor | None) -> RegressionPrediction:
        """The prediction with these locations of y."""
        return replace(super().of_locations(locations, labels), degrees_of_freedom=self.degrees_of_freedom)
