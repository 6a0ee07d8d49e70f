"""The next token after each token of a row, as a language model says it, but for tokens that nobody asks about."""

from typing import Any

import torch
from pyro.distributions import Categorical
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from bayes_lora.labels import UNLABELLED


class NextTokenCategorical(TorchDistribution):  # type: ignore[misc]
    """``prod_{t > 0} softmax(logits_{t-1})[y_t]`` over the tokens t of a row whose value is not -100.

    The first token has nothing before it, and no probability: a draw has -100 there, and its value is passed over.

    Args:
        logits: (..., token, vocabulary); those of the last token are of one that the row does not have.

    Example:
        >>> NextTokenCategorical(torch.zeros(1, 3, 4)).log_prob(torch.tensor([[0, -100, 1]])).exp()
        tensor([0.2500])
    """

    has_rsample = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NextTokenCategorical":
        """The same distribution with batch dimensions broadcast to `batch_shape`."""
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:
            return self
        return NextTokenCategorical(self.logits.expand(shape + self.logits.shape[-2:]))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """A token in every place but the first, (*sample_shape, ..., token), each given the row as it was read."""
        drawn: Tensor = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        return pad(drawn[..., :-1], (1, 0), value=UNLABELLED)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probabilities of rows of tokens (..., token); returns (...)."""
        # The labels move, not the logits: these are too large to be copied.
        following = pad(value[..., 1:], (0, 1), value=UNLABELLED).expand(self.logits.shape[:-1])
        losses = cross_entropy(
            self.logits.flatten(0, -2), following.flatten(), ignore_index=UNLABELLED, reduction="none"
        )
        return -losses.view(following.shape).sum(-1)
