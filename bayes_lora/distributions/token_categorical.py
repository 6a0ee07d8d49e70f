"""A class for each token of a row, but for tokens that have none."""

from typing import Any

import torch
from pyro.distributions import Categorical
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from bayes_lora.labels import UNLABELLED


class TokenCategorical(TorchDistribution):  # type: ignore[misc]
    """``prod_t softmax(logits_t)[y_t]`` over the tokens t of a row that have a label: those whose value is not -100.

    Args:
        logits: (..., token, class).

    Example:
        >>> TokenCategorical(torch.zeros(1, 3, 2)).log_prob(torch.tensor([[0, -100, 1]])).exp()
        tensor([0.2500])
    """

    has_rsample = False

    def __init__(self, logits: Tensor) -> None:
        self._tokens = Categorical(logits=logits, validate_args=False)
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=False)

    @property
    def logits(self) -> Tensor:
        """Normalized, (..., token, class)."""
        return self._tokens.logits  # type: ignore[no-any-return]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TokenCategorical":
        """The same distribution with batch dimensions broadcast to `batch_shape`."""
        shape = torch.Size(batch_shape)
        return (
            self if shape == self.batch_shape else TokenCategorical(self.logits.expand(shape + self.logits.shape[-2:]))
        )

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """A class for every token, (*sample_shape, ..., token)."""
        return self._tokens.sample(sample_shape)  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probabilities of rows of classes (..., token); returns (...)."""
        labelled = value != UNLABELLED
        return self._tokens.log_prob(value.where(labelled, 0)).where(labelled, 0.0).sum(-1)  # type: ignore[no-any-return]
