"""What the diagnostics of the posterior have in common."""

import torch
from torch import Tensor

from bayes_lora.models import BayesianLoRA


def by_adapter(model: BayesianLoRA, value: Tensor) -> Tensor:
    """A site's value ([outer,] adapter, ...), or anything of its plates, as (adapter, entry)."""
    return value.movedim(len(model.sites.outer_shape), 0).unsqueeze(-1).flatten(1)


class RunningMoments:
    """Mean and variance over draws, without keeping the draws (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, value: Tensor) -> None:
        """Take one more draw in; it is kept in double precision."""
        value = value.double()
        self.count += 1
        before = value - self.mean
        self.mean = self.mean + before / self.count
        self._squares = self._squares + before * (value - self.mean)

    @property
    def variance(self) -> Tensor:
        """With the denominator count - 1."""
        return torch.as_tensor(self._squares) / (self.count - 1)
