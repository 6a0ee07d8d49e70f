"""What Trainers of more than a network share: parameters in groups of their own, and columns of batches."""

import inspect
from typing import Any

import torch
from torch import nn

from bayes_lora.models import Likelihood


def give_own_group(optimizer: torch.optim.Optimizer, part: nn.Module, learning_rate: float) -> None:
    """Move the trainable parameters of a part into a group without weight decay, at a learning rate of their own."""
    own = [parameter for parameter in part.parameters() if parameter.requires_grad]
    known = set(map(id, own))
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
    if own:
        optimizer.add_param_group({"params": own, "lr": learning_rate, "weight_decay": 0.0})


def batch_columns(network: Any, likelihood: Likelihood) -> list[str]:
    """The columns of rows that a network and a likelihood read, and what the Trainer knows labels by.

    The Trainer reads them from the forward signature of its module, which takes any batch.
    """
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    return [*inspect.signature(base.forward).parameters, *likelihood.batch_columns, "label", "label_ids", "labels"]
