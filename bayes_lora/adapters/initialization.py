"""Initializations of LoRA that rewrite the base weights, and whether a saved adapter can be opened again after them."""

from typing import Any

from torch import nn

from bayes_lora.errors import UnsupportedAdapterError

# Those that leave the base weights as they are, besides True and False.
_KEEPING = {"gaussian", "eva", "orthogonal"}
# What these put into the base weights depends on random numbers or on data, which the saved adapter does not have.
_UNREPEATABLE = ("pissa_niter_", "corda", "lora_ga")


def rewrites_base(initialization: Any) -> bool:
    """Whether LoraConfig's `init_lora_weights` takes the adapter's start out of the base weights (W - B A)."""
    return isinstance(initialization, str) and initialization.lower() not in _KEEPING


def require_repeatable(network: nn.Module, keys: set[str]) -> None:
    """Raise if base weights were rewritten in a way that opening the saved adapter would not repeat.

    Args:
        network: a PEFT model.
        keys: names of its active adapters.

    Raises:
        UnsupportedAdapterError: they were.
    """
    for key in sorted(keys):
        config = getattr(network, "peft_config", {}).get(key)
        initialization = getattr(config, "init_lora_weights", None)
        if isinstance(initialization, str) and initialization.lower().startswith(_UNREPEATABLE):
            raise UnsupportedAdapterError(
                f"adapter {key!r} was initialized with init_lora_weights={initialization!r}, which rewrites the base "
                "weights by random numbers or data that are not saved: opened again, it would be on another base. Use "
                "'pissa' or 'olora', which can be repeated; or convert it to plain LoRA first, "
                "network.save_pretrained(..., path_initial_model_for_weight_conversion=...)."
            )
