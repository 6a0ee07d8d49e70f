"""What a causal language model takes, whatever is wrapped around it."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

GREEDY: Mapping[str, Any] = MappingProxyType(
    {
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
)
"""Of `generate`: the likeliest token, whatever the network's `generation_config` has."""


def base_of(network: Any) -> Any:
    """The network itself, without PEFT's wrapper."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def arguments_of(network: Any) -> frozenset[str]:
    """Names of what the forward pass of a network takes."""
    return _arguments(type(base_of(network)).forward)


def text_config(network: Any) -> Any:
    """The configuration of the part of a network that reads text; None where it has none."""
    config: Any = getattr(network, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


@cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
