"""Small decoders whose draws disagree, and prompts for them."""

from typing import Any

import torch

from tests.language import pair_of

PROMPTS = [[7, 21, 33], [40, 5, 11, 26, 9, 14, 30], [12]]


def sharpened(name: str = "llama", dtype: torch.dtype = torch.double, **config: Any) -> Any:
    """Model and guide; weights are large enough for the network to say one thing rather than another."""
    model, guide = pair_of(name, dtype, **{"sample_scale": 1.0, **config})
    with torch.no_grad():
        for parameter_name, parameter in model.network.named_parameters():
            if parameter.dim() == 2 and "lora" not in parameter_name:
                parameter.mul_(6)
    return model, guide
