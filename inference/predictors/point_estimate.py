"""The point estimate: what the network says at the weights it has."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bayes_lora.inference.predictors.predictor import Inputs, collect, evaluation_mode
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import network_logits


@dataclass(frozen=True, eq=False)
class PointEstimate:
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

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        def logits(inputs: Inputs) -> Tensor:
            return network_logits(self.network, inputs).unsqueeze(0)

        with evaluation_mode(self.network):
            return collect(logits, loader, next(self.network.parameters()).device, on_batch)
