"""What each batch of a step counts for, where batches observe unequally much."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from bayes_lora.models import Likelihood


class StepWeights:
    """Weights under which the mean over a step's batches of their means is the mean over all that the step observes:

        w_b = n_b / mean_b n_b,    n_b what batch b observes

    with the mean over the batches that are accumulated and over processes, whose gradients are averaged.

    Args:
        likelihood: says what a batch observes.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        self._likelihood = likelihood
        self._mean: float | None = None  # None where all batches weigh the same

    def count(self, trainer: Trainer, batches: Sequence[Mapping[str, Any]]) -> None:
        """Begin a step of these batches, on every process."""
        likelihood, processes = self._likelihood, trainer.args.world_size
        shared = processes > 1 and not likelihood.counts_rows  # rows are shared out evenly
        self._mean = None
        if (len(batches) < 2 and not shared) or any("labels" not in batch for batch in batches):
            return
        found = float(sum(likelihood.num_observations(batch["labels"]) for batch in batches))
        if shared:
            counts = trainer.accelerator.gather(torch.tensor([found], device=trainer.args.device))
            found = float(counts.sum()) / processes
        self._mean = found / len(batches)

    def of(self, batch: Mapping[str, Any]) -> float:
        """The weight of one of them; 1 where nothing in the step is observed."""
        return self._likelihood.num_observations(batch["labels"]) / self._mean if self._mean else 1.0
