"""What a fit needs to be trainable, and its optimizer to hold."""

from collections.abc import Mapping

import torch
from torch import nn

from bayes_lora.errors import ConfigurationError
from bayes_lora.models import BayesianLoRA

_OPEN_TRAINABLE = (
    "PEFT opens adapters frozen: open it with is_trainable=True, load_posterior(..., is_trainable=True) or "
    "PeftModel.from_pretrained(..., is_trainable=True), and build it without inference_mode=True"
)


def require_trainable_adapters(model: BayesianLoRA) -> None:
    """Raise if mean and posterior are to be learned together and nothing of the adapters can be.

    Raises:
        ConfigurationError: no LoRA-A or LoRA-B of the model asks for a gradient.
    """
    if not any(parameter.requires_grad for adapter in model.sites.adapters for parameter in adapter.parameters()):
        raise ConfigurationError(
            "every LoRA matrix of the network is frozen, so that a joint fit would leave the mean adapter where it is. "
            f"{_OPEN_TRAINABLE}; or learn the posterior alone, around this adapter: FitOptions(phases='posterior'), "
            "SVITrainer(..., phase='posterior')."
        )


def require_trainable(network: nn.Module) -> None:
    """Raise if a network is to be trained and nothing of it can be.

    Raises:
        ConfigurationError: no parameter asks for a gradient.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigurationError(
            f"every parameter of the network is frozen, so there is nothing to train. {_OPEN_TRAINABLE}."
        )


def require_all_in(optimizer: torch.optim.Optimizer, parts: Mapping[str, nn.Module]) -> None:
    """Raise if a tensor asks for a gradient that the optimizer would not follow.

    Args:
        optimizer: as it was given.
        parts: the network and the guide, by name.

    Raises:
        ConfigurationError: the optimizer lacks a trainable tensor; names it and its part.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for part, module in parts.items():
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        missing = sorted(name for name, parameter in trained.items() if id(parameter) not in held)
        if missing:
            raise ConfigurationError(
                f"the optimizer lacks {len(missing)} of the {len(trained)} trainable tensors of the {part}, such as "
                f"{missing[0]!r}, which would stay where they are. Add them, optimizer.add_param_group({{'params': "
                f"[p for p in {part}.parameters() if p.requires_grad], 'lr': ...}}), or freeze them: "
                "requires_grad_(False)."
            )
