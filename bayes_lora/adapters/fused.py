"""A LoRA layer under noise in one step: the same products as PEFT's, with fewer passes over the activations."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from bayes_lora.adapters.dora import PerturbedDora, dora_gain
from bayes_lora.adapters.perturbation import PerturbedLinear

# Rows from which on B' is laid out anew: autograd then computes B's gradient as a wide product, (rank, out), and not as
# a tall one, (out, rank), which takes two to three times as long; for few rows the copy costs more than that.
_MANY_ROWS = 64

# LoRA-A, base layer, LoRA-B, DoRA's magnitude and the scaling.
Parts = tuple[PerturbedLinear, nn.Linear, nn.Linear, PerturbedDora | None, float]


class FusedLoraLinear(LoraLinear):  # type: ignore[misc]
    """PEFT's `lora.Linear`, which under noise is `lora_product` with ``A = mu + P``, of DoRA with its gain.

    Without noise, and wherever anything is not plain (dropout in training, several adapters, quantized weights, hooks,
    torch.compile, arguments besides x), it is PEFT's own forward pass: at the mean the network gives bit for bit what
    PEFT gives. Under autocast all factors are rounded to its type, as PEFT's are, and their sum once, not twice.

    A layer becomes one by its class alone (`fuse`), so that parameters, names and state dict stay what they are.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = None if args or kwargs else self._plain_parts(x)
        if found is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        factor, base, expand, magnitude, scaling = found
        draw = factor.active_draw()
        fuses = draw is not None and (draw.dim() == 2 or (factor.noise_state.fuse_stacks and magnitude is None))
        if draw is None or not fuses:
            return super().forward(x)  # type: ignore[no-any-return]
        if draw.dim() != 2:
            x = factor.by_draw(x, draw)
        bias: Tensor | None = base.bias
        gain = None
        if magnitude is not None:
            gain = dora_gain(magnitude.weight, base.weight, draw, expand.weight, scaling)
        if torch.is_autocast_enabled(x.device.type):
            lower = torch.get_autocast_dtype(x.device.type)
            bias = bias if bias is None else bias.to(lower)
            x, draw, wide, weight = (part.to(lower) for part in (x, draw, expand.weight, base.weight))
            y = lora_product(x, draw, wide, weight, bias, scaling, gain)
        else:
            y = lora_product(x, draw, expand.weight, base.weight, bias, scaling, gain)
        return y if draw.dim() == 2 else y.flatten(0, 1)

    def _plain_parts(self, x: Tensor) -> Parts | None:
        """What the output is made of, if it is nothing but their product."""
        active = self.active_adapters
        if len(active) != 1 or self.merged or self.disable_adapters or torch.compiler.is_compiling():
            return None
        key, modules = active[0], self._modules  # module and parameter attributes are slow to look up
        factor, expand, base = modules["lora_A"]._modules[key], modules["lora_B"]._modules[key], modules["base_layer"]
        if not (isinstance(factor, PerturbedLinear) and type(expand) is nn.Linear and type(base) is nn.Linear):
            return None
        magnitude = modules["lora_magnitude_vector"]._modules.get(key)
        parts = [part for part in (base, factor, expand, magnitude) if part is not None]
        weights = (part._parameters["weight"] for part in parts)
        plain = (
            not factor.noise_state.exact
            and (not self.training or type(modules["lora_dropout"]._modules[key]) is nn.Identity)
            and expand._parameters["bias"] is None
            and all(weight is not None and _is_of_one_type(weight, x) for weight in weights)
            and not any(_is_hooked(part) for part in parts)
        )
        return (factor, base, expand, magnitude, self.scaling[key]) if plain else None


def _is_of_one_type(weight: Tensor, x: Tensor) -> bool:
    """Whether the two can be multiplied; autocast rounds to its type what is of single precision."""
    if torch.is_autocast_enabled(x.device.type):
        castable = (torch.float32, torch.get_autocast_dtype(x.device.type))
        return weight.dtype in castable and x.dtype in castable
    return weight.dtype == x.dtype


def _is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def fuse(layer: LoraLinear) -> None:
    """Let a plain PEFT layer take the fused path under noise; another kind of layer is left alone."""
    if type(layer) is LoraLinear:
        layer.__class__ = FusedLoraLinear


def unfuse(layer: nn.Module) -> None:
    """Undo `fuse`."""
    if type(layer) is FusedLoraLinear:
        layer.__class__ = LoraLinear


def lora_product(
    x: Tensor, a: Tensor, expand: Tensor, base: Tensor, bias: Tensor | None, scaling: float, gain: Tensor | None = None
) -> Tensor:
    """``(x W' + scaling (x A') B') gain + b``, with the second product accumulated onto the first in place.

    PEFT scales the adapter's output and adds it to the base layer's in two more passes over the activations, and one
    more backward; for DoRA it takes the bias off and adds it again besides.

    Args:
        x: (..., in_features), or (draw, ..., in_features) for as many draws of A.
        a: LoRA-A, (rank, in_features), or (draw, rank, in_features).
        expand: LoRA-B, (out_features, rank).
        base: W, (out_features, in_features).
        bias: b, (out_features,), or None.
        scaling: lora_alpha / rank, as a rule.
        gain: DoRA's, (out_features,), of single precision or better; none is 1.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ base.mT if bias is None or gain is not None else torch.addmm(bias, rows, base.mT)
    wide = expand.mT.contiguous() if len(rows) >= _MANY_ROWS else expand.mT
    # Of several draws with the wide factor in front: up to three times as fast as behind.
    narrow = rows @ a.mT if a.dim() == 2 else (a @ rows.unflatten(0, (len(a), -1)).mT).mT.flatten(0, 1)
    y.addmm_(narrow, wide, alpha=scaling)
    if gain is not None:
        y = (y * gain if bias is None else torch.addcmul(bias, y, gain)).to(y.dtype)
    return y.view(*x.shape[:-1], y.shape[-1])
