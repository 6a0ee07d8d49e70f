"""Regression with noise of heavy tails."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bayes_lora.experiments.families.regression import Regression

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood


class RobustRegression(Regression):
    """As `Regression`, but labels that are far off now and then weigh little: the noise is Student's t."""

    name = "robust_regression"

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """Student's t with 4 degrees of freedom."""
        from bayes_lora.models import StudentTRegression

        return StudentTRegression(learned=True, num_outputs=max(1, len(label_names)))
