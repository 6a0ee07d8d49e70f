"""A device beside the CPU, made of the CPU's memory: what a GPU would refuse, it refuses.

`install` makes ``torch.device("other")`` known to this process, for good: it belongs in a process of its own. Tensors
there hold a tensor of the CPU, on which every operation is done; tensors of the CPU itself may not be mixed in, save
single numbers, and copies. There is no other check of what a real accelerator can do.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "other"
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_LIBRARY = torch.library.Library("_", "IMPL")  # its rules go when it does


class Elsewhere(Tensor):
    """A tensor of the other device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        """`held` as a tensor of the other device."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _call(function, *args, **(kwargs or {}))


class _Backend(_DummyBackendModule):
    """Its generator is the CPU's."""

    @staticmethod
    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    manual_seed_all = manual_seed

    @staticmethod
    def get_rng_state() -> Tensor:
        return torch.default_generator.get_state()

    @staticmethod
    def set_rng_state(state: Tensor) -> None:
        torch.default_generator.set_state(state)

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


class _Constructors(TorchFunctionMode):
    """What cannot be dispatched to Python: making tensors from numbers, pinned memory, where in memory a tensor is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.pin_memory:
            return args[0]
        if function in (Tensor.untyped_storage, Tensor.data_ptr, Tensor.tolist) and isinstance(args[0], Elsewhere):
            return function(args[0].held)
        if function is Tensor.new_tensor:
            own, *args = args
            kwargs = {"dtype": own.dtype, "device": own.device, **kwargs}
            function = torch.tensor
        if function in (torch.tensor, torch.eye) and _is_other(kwargs.get("device")):
            device, gradient = kwargs.pop("device"), kwargs.pop("requires_grad", False)
            return function(*args, **kwargs, device="cpu").to(device).requires_grad_(gradient)
        return function(*args, **kwargs)


def install() -> None:
    """Make the device known, also to accelerate, which takes it from the environment."""
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    _LIBRARY.fallback(_call, "PrivateUse1")
    _Constructors().__enter__()  # type: ignore[no-untyped-call]
    os.environ["ACCELERATE_TORCH_DEVICE"] = f"{NAME}:0"


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Do an operation on the CPU; its result is on the other device where `device` says so, or else an argument is."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim() > 0]
    if there and here and function not in _COPIES:
        raise RuntimeError(f"{function}: tensors of two devices; of the CPU: {[tuple(each.shape) for each in here]}")
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    done = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if function._schema.name.endswith("_") and tensors and tensors[0] is args[0]:  # in place
        return args[0]
    stays = bool(there) if device is None else _is_other(device)
    return tree_map(lambda each: Elsewhere(each) if isinstance(each, Tensor) else each, done) if stays else done


def _is_other(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value
