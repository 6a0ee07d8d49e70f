"""The terms of the loss between two logs, and the check that they stay finite."""

import torch
from torch import Tensor

from bayes_lora.errors import NonFiniteLossError


class LossLog:
    """Mean of each loss term since the last entry, kept on the device: reading a number every step would stall it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._bad_step: dict[str, Tensor] = {}
        self._count = 0

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        self._count += 1
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            before = self._bad_step.setdefault(name, torch.zeros((), dtype=torch.long, device=value.device))
            self._bad_step[name] = torch.where((before == 0) & ~torch.isfinite(value), step, before)

    def close(self) -> dict[str, float]:
        """The means, with their sum as `loss`; starts a new entry."""
        bad = {name: int(first) for name, first in self._bad_step.items() if first > 0}
        if bad:
            step = min(bad.values())
            names = ", ".join(name for name, first in bad.items() if first == step)
            raise NonFiniteLossError(
                f"the loss became NaN or infinite at step {step}, in the term(s) {names}. Lower the learning rate "
                "(learning_rate for nll, posterior_learning_rate for the KLs), or look for NaN in the inputs."
            )
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return {"loss": sum(means.values()), **means}
