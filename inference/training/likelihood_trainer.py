"""Training under the transformers Trainer of a point estimate with a likelihood."""

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from bayes_lora.inference.training.own_groups import give_own_group
from bayes_lora.inference.training.sealed_trainer import SealedTrainer
from bayes_lora.inference.training.step_weights import StepWeights
from bayes_lora.models import LikelihoodNetwork


class LikelihoodTrainer(SealedTrainer):
    """`SealedTrainer` of a `LikelihoodNetwork`.

    Args:
        model: network and likelihood.
        args: TrainingArguments; `learning_rate` is that of the network's parameters.
        likelihood_learning_rate: peak learning rate of the likelihood's parameters, which have no weight decay.
        kwargs: the Trainer's own.
    """

    def __init__(
        self, model: LikelihoodNetwork, args: TrainingArguments, *, likelihood_learning_rate: float, **kwargs: Any
    ) -> None:
        self.likelihood_learning_rate = likelihood_learning_rate
        super().__init__(model, args, **kwargs)
        self.label_names = ["labels"]
        self._of_likelihood = model.likelihood
        self._weights = StepWeights(model.likelihood)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, where something in the training rows is observed."""
        if self.train_dataset is not None:  # else the Trainer says that there is none
            self._of_likelihood.require_observations(self.train_dataset)
        return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's, with the likelihood's parameters in a group of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        give_own_group(optimizer, self._of_likelihood, self.likelihood_learning_rate)
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, of one step, counted."""
        batches, counted = super().get_batch_samples(*args, **kwargs)
        self._weights.count(self, batches)
        return batches, counted

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch, weighed by what it observes of a step's."""
        weight = self._weights.of(inputs) if model.training else 1.0
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return weight * loss if isinstance(loss, torch.Tensor) else (weight * loss[0], *loss[1:])
