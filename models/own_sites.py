"""A callable in place of a likelihood."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayes_lora.errors import LikelihoodError
from bayes_lora.models.likelihoods.classification import Classification

_UNKNOWN = (
    "the likelihood of the model is a callable, OwnSites, of whose labels nobody knows the density. Derive it from "
    "bayes_lora.models.Likelihood."
)


class OwnSites(Classification):
    """A callable of the user's own in place of a likelihood: it opens the sites, predictions are of classes.

    It cannot be saved, since nothing says what it is; a subclass of `Likelihood` can.
    """

    kind = "own_sites"

    def __init__(self, opens: Callable[[Tensor, Tensor | None], None]) -> None:
        super().__init__()
        self.opens = opens

    def num_observations_in(self, dataset: Any) -> int | None:
        """Nobody knows what the callable weighs its observations by."""
        return None

    def draw_log_density(self, prediction: Any) -> Tensor:
        """Not to be had.

        Raises:
            LikelihoodError: always: nobody knows what the callable observes.
        """
        raise LikelihoodError(_UNKNOWN)

    def replicated(self, prediction: Any, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Not to be had.

        Raises:
            LikelihoodError: always: nobody knows what the callable draws.
        """
        raise LikelihoodError(_UNKNOWN)

    def forward(self, logits: Tensor, labels: Tensor | None) -> None:
        """Open what the callable opens."""
        self.opens(logits, labels)
