"""What a likelihood is, and the network outputs that it takes."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from bayes_lora.errors import LikelihoodError


class Likelihood(Protocol):
    """Opens the sites `logits` and `y`, scaled so that y's negative log-likelihood is a mean over what is predicted."""

    def __call__(self, logits: Tensor, labels: Tensor | None) -> None: ...


def network_logits(network: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Run a network with a task head and return its logits.

    Raises:
        LikelihoodError: its output has none.
    """
    output = network(**inputs)
    logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise LikelihoodError(
            f"the network returned {type(output).__name__} without logits. Load it with a task head, "
            "for example AutoModelForSequenceClassification."
        )
    return logits
