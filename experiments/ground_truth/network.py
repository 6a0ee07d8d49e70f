"""The network of the ground-truth problems, and the likelihood of those that are regressions."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from bayes_lora.errors import LikelihoodError
from bayes_lora.models.site_handler import SiteHandler


class TwoLayer(nn.Module):
    """``V g(W0 x)`` without biases, g the identity or tanh; LoRA goes to its Linear `hidden`."""

    def __init__(self, base: Tensor, head: Tensor, *, linear: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(base.shape[1], base.shape[0], bias=False, dtype=base.dtype)
        self.activation = nn.Identity() if linear else nn.Tanh()
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False, dtype=head.dtype)
        with torch.no_grad():
            self.hidden.weight.copy_(base)
            self.head.weight.copy_(head)

    def forward(self, inputs: Tensor) -> SequenceClassifierOutput:
        """Logits (example, output) of inputs (example, in_features)."""
        return SequenceClassifierOutput(logits=self.head(self.activation(self.hidden(inputs))))


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
