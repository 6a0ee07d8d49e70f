"""The point estimate: what the network says at the weights it has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from bayes_lora.inference.predictors.predictor import NetworkPredictor, Passes
from bayes_lora.models import network_logits


@dataclass(frozen=True, eq=False)
class PointEstimate(NetworkPredictor):
    """``p(y | x) = softmax(f(x; theta))`` at the weights theta that the network has: MAP, where it was so trained.

    Any network with a task head will do. The one inside a `BayesianLoRA` gives the prediction at its mean, ``A = mu``.

    Cost: one forward pass; one sample, whatever `num_samples` and `seed`.

    Args:
        network: returns logits (example, class) for a batch.

    Raises:
        LikelihoodError: when called: the network's output has no logits.
        DataError: when called: an empty loader, or labels in some batches only.

    Example:
        >>> prediction = PointEstimate(network)(loader)  # doctest: +SKIP
    """

    network: nn.Module

    @contextmanager
    def drawing(self, num_samples: int, seed: int) -> Iterator[Passes]:
        """One, whatever the arguments."""
        yield lambda inputs: iter([network_logits(self.network, inputs).unsqueeze(0)])
