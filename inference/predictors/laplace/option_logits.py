"""What the curvature is of: logits of classes, or the scores of a row's own options; and whose row is whose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.inference.predictors.predictor import Inputs
from bayes_lora.models import LikelihoodNetwork, MultipleChoice, network_logits
from bayes_lora.models.likelihoods.option_passes import option_copies


@dataclass(frozen=True)
class Layout:
    """How the rows that a network runs make up the examples of a batch.

    Attributes:
        copies: rows of each example, which begin alike.
        own: positions at the end of each that are its own; those before say the same in all copies.
    """

    copies: int = 1
    own: int = 0

    def of_inputs(self, values: Tensor) -> Tensor:
        """(row, ..., feature) as (example, position, feature); what all copies say alike is there once."""
        return self._joined(values, lambda alike: alike[:, 0])

    def of_gradients(self, values: Tensor) -> Tensor:
        """The same of gradients, which copies add."""
        return self._joined(values, lambda alike: alike.sum(1))

    def _joined(self, values: Tensor, of_copies: Callable[[Tensor], Tensor]) -> Tensor:
        rows = values.reshape(len(values), -1, values.shape[-1])
        if self.copies == 1:
            return rows
        alike, own = rows.unflatten(0, (-1, self.copies)).tensor_split([rows.shape[1] - self.own], dim=2)
        return torch.cat([of_copies(alike), own.flatten(1, 2)], dim=1)


def peft_model(network: Any, parameters: str) -> Any:
    """The network inside a `LikelihoodNetwork`, where there is one, whose likelihood has the curvature of a softmax.

    Args:
        network: a classifier, or a `LikelihoodNetwork`.
        parameters: see `LaplaceOptions`.

    Raises:
        LikelihoodError: a likelihood of other labels.
        ConfigurationError: the last layer of a language model.
    """
    if not isinstance(network, LikelihoodNetwork):
        return network
    if not isinstance(network.likelihood, MultipleChoice):
        raise LikelihoodError(
            f"the curvature is that of a softmax over classes, or over a row's own options, and a "
            f"{type(network.likelihood).__name__} has another. Fit a posterior with BayesianLoRA."
        )
    if parameters != "all":
        raise ConfigurationError(
            f"parameters={parameters!r} takes the last layer, and that of a language model is the base model's, over "
            "the whole vocabulary and never trained, so that it is at no mode. Use parameters='all'."
        )
    return network.network


def logits_of(network: nn.Module, inputs: Inputs) -> tuple[Tensor, Layout]:
    """Logits (example, class), -inf for options that a row does not have, and how rows make up the examples.

    Raises:
        LikelihoodError: see `Likelihood.logits`.
    """
    if not isinstance(network, LikelihoodNetwork):
        return network_logits(network, inputs), Layout()
    logits = network.likelihood.logits(network.network, inputs)
    return logits, Layout(*option_copies(network.network, inputs))


def existing(network: nn.Module, logits: Tensor) -> Tensor:
    """Which logits are those of a class: of a classifier all, of options those that the row has."""
    return logits != -torch.inf if isinstance(network, LikelihoodNetwork) else torch.ones_like(logits, dtype=torch.bool)
