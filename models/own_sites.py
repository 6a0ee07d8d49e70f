"""A callable in place of a likelihood."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bayes_lora.models.likelihoods.classification import Classification


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

    def forward(self, logits: Tensor, labels: Tensor | None) -> None:
        """Open what the callable opens."""
        self.opens(logits, labels)
