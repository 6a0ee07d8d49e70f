"""What Trainers of more than a network share: parameters in groups of their own."""

import torch
from torch import nn


def give_own_group(optimizer: torch.optim.Optimizer, part: nn.Module, learning_rate: float) -> None:
    """Move the trainable parameters of a part into a group without weight decay, at a learning rate of their own."""
    own = [parameter for parameter in part.parameters() if parameter.requires_grad]
    known = set(map(id, own))
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
    if own:
        optimizer.add_param_group({"params": own, "lr": learning_rate, "weight_decay": 0.0})
