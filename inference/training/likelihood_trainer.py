"""Training under the transformers Trainer of a point estimate with a likelihood."""

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from bayes_lora.inference.training.own_groups import batch_columns, give_own_group
from bayes_lora.inference.training.sealed_trainer import SealedTrainer
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
        self._signature_columns: Any = batch_columns(model.network)
        self._of_likelihood = model.likelihood

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's, with the likelihood's parameters in a group of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        give_own_group(optimizer, self._of_likelihood, self.likelihood_learning_rate)
        return optimizer
