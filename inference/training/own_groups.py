"""What Trainers give to parts of a network: a learning rate of their own, weight decay or none."""

from collections.abc import Iterable

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel


def give_own_group(optimizer: torch.optim.Optimizer, part: nn.Module, learning_rate: float) -> None:
    """Move the trainable parameters of a part into a group without weight decay, at a learning rate of their own."""
    own = [parameter for parameter in part.parameters() if parameter.requires_grad]
    known = set(map(id, own))
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
    if own:
        optimizer.add_param_group({"params": own, "lr": learning_rate, "weight_decay": 0.0})


def give_learning_rate(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], learning_rate: float
) -> None:
    """Give parameters a learning rate of their own; all else they have is that of the group which they were in."""
    known = set(map(id, parameters))
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in known]
        if own:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
            optimizer.add_param_group({**group, "params": own, "lr": learning_rate})


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of the task head: all outside of the transformer itself that is no adapter.

    LoRA on a language model's output layer is an adapter; embeddings that PEFT trains in full are the transformer's.

    Args:
        network: a transformers or PEFT model, or a module that holds one.
    """
    of_adapters = {
        id(parameter)
        for layer in network.modules()
        if isinstance(layer, BaseTunerLayer)
        for parameter in layer.parameters()
    }
    base = next((module for module in network.modules() if isinstance(module, PreTrainedModel)), None)
    children = {} if base is None else dict(base.named_children())
    if base is None or base.base_model_prefix not in children:  # a body alone
        return []
    outside = (child for name, child in children.items() if name != base.base_model_prefix)
    found = (parameter for part in outside for parameter in part.parameters())
    return [parameter for parameter in found if parameter.requires_grad and id(parameter) not in of_adapters]


def lora_a_parameters(network: nn.Module) -> list[nn.Parameter]:
    """LoRA-A of every adapter in the network."""
    layers = (layer for layer in network.modules() if isinstance(layer, LoraLayer))
    return [
        parameter
        for layer in layers
        for part in (layer.lora_A, layer.lora_embedding_A)
        for parameter in part.parameters()
    ]
