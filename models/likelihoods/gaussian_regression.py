"""Regression with Gaussian noise of known size."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from torch import Tensor

from bayes_lora.effect_handlers import SiteHandler
from bayes_lora.errors import LikelihoodError


@dataclass(frozen=True)
class GaussianRegression:
    """``y_i ~ N(logits_i, noise_scale^2 I)`` in the plate `data`, scaled by 1 / batch size: a `Likelihood`.

    Attributes:
        noise_scale: standard deviation of the labels, known.
    """

    noise_scale: float

    def __call__(self, logits: Tensor, labels: Tensor | None) -> None:
        """Open `logits` (deterministic) and `y`, (example, output), observed if there are labels.

        Raises:
            LikelihoodError: as many labels as outputs are needed.
        """
        if labels is not None:
            if labels.numel() != logits.numel():
                raise LikelihoodError(
                    f"the labels have shape {tuple(labels.shape)}, the network's outputs {tuple(logits.shape)}. Pass "
                    "one real number for each output of each row."
                )
            labels = labels.reshape(logits.shape)
        with SiteHandler({"data": len(logits)}, 1 / len(logits)):
            pyro.deterministic("logits", logits, event_dim=1)
            pyro.sample("y", dist.Normal(logits, self.noise_scale).to_event(1), obs=labels)
