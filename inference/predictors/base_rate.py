"""The base rate: how often each class occurs, whatever the row says. Whoever reads rows must do better."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayes_lora.checks import require_class_ids, require_count
from bayes_lora.errors import DataError
from bayes_lora.inference.predictors.predictor import Inputs, collect
from bayes_lora.metrics.prediction import Prediction


@dataclass(frozen=True, eq=False)
class BaseRate:
    """``p(y = c | x) = (n_c + 1) / (n + C)``: the shares of C classes among n training rows, by the rule of succession.

    A method whose NLL is above this one's knows less about its rows than how often the classes occur. Its ECE is near 0
    and its detection of errors is chance, so neither is a virtue in itself.

    Cost: none; one sample, whatever `num_samples` and `seed`.

    Args:
        labels: of the training rows, (example,), integers from 0.
        num_classes: C.

    Raises:
        ConfigurationError: fewer classes than 1.
        DataError: labels outside the classes. When called: an empty loader, or labels in some batches only.

    Example:
        >>> batch = {"input_ids": torch.zeros(2, 5, dtype=torch.long)}
        >>> BaseRate(torch.tensor([0, 1, 1, 1, 1, 1]), 2)([batch]).mean_probs[0]
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """

    labels: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        require_count("num_classes", self.num_classes)
        require_class_ids(self.labels, self.num_classes, DataError, "Correct the labels or num_classes.")

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        counts = torch.bincount(self.labels, minlength=self.num_classes).double() + 1
        shares = counts.div(counts.sum()).log()

        def logits(inputs: Inputs) -> Tensor:
            num_rows = len(next(value for value in inputs.values() if isinstance(value, Tensor)))
            return shares.expand(1, num_rows, -1)

        return collect(logits, loader, torch.device("cpu"), on_batch)
