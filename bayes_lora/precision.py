"""Mixed precision around the network, and full precision for the small matrices of the posterior inside it."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from bayes_lora.choices import Precision

P = ParamSpec("P")
R = TypeVar("R")


def posterior_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that posterior parameters and noise have beside weights of `dtype`: float32 or better."""
    return torch.promote_types(dtype, torch.float32)


def kept_precise(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What `Module._apply` is told, less casts to half precision: what is small and sampled stays in float32 or better,
    and the network may be cast alone."""

    def cast(value: Tensor) -> Tensor:
        new = fn(value)
        halved = value.is_floating_point() and posterior_dtype(new.dtype) != new.dtype
        return value.to(new.device) if halved else new

    return cast


def mixed_precision(precision: Precision, device: torch.device) -> torch.autocast:
    """Autocast to this precision for predictions; under "float32" nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` with autocast off: under it, a matrix product of float32 factors would run in bfloat16."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return wrapper(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapper


def half_log_determinant(factor: Tensor) -> Tensor:
    """1/2 ln|L L'| = sum_i ln L_ii of triangular factors (..., rank, rank); returns (...)."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
