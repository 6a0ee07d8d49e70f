"""A LoRA layer under noise in one step: the same products as PEFT's, with fewer passes over the activations."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from bayes_lora.perturbation import PerturbedLinear


class FusedLoraLinear(LoraLinear):  # type: ignore[misc]
    """PEFT's `lora.Linear`, which under noise computes ``x W' + b + scaling (x (mu + P)') B'`` in one function.

    PEFT adds the adapter's output to the base layer's in passes of their own, forward and backward; here both products
    accumulate in place. Without noise, and wherever anything is not plain (dropout in training, several adapters,
    quantized or trained base weights, hooks, autocast, torch.compile, arguments besides x), it is PEFT's own forward
    pass: at the mean the network gives bit for bit what PEFT gives.

    A layer becomes one by its class alone (`fuse`), so that parameters, names and state dict stay what they are.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = None if args or kwargs else self._plain_parts(x)
        if found is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        factor, base, expand, scaling = found
        noise = factor.active_noise()
        if noise is None or noise.dim() != 2:
            return super().forward(x)  # type: ignore[no-any-return]
        return _Product.apply(x, factor.weight, noise, expand.weight, base.weight, base.bias, scaling)  # type: ignore[no-any-return,no-untyped-call]

    def _plain_parts(self, x: Tensor) -> tuple[PerturbedLinear, nn.Linear, nn.Linear, float] | None:
        """LoRA-A, base layer, LoRA-B and scaling, if nothing but their product is to be computed."""
        active = self.active_adapters
        if len(active) != 1 or self.merged or self.disable_adapters or torch.compiler.is_compiling():
            return None
        key, modules = active[0], self._modules  # module and parameter attributes are slow to look up
        factor, expand, base = modules["lora_A"]._modules[key], modules["lora_B"]._modules[key], modules["base_layer"]
        if not (isinstance(factor, PerturbedLinear) and type(expand) is nn.Linear and type(base) is nn.Linear):
            return None
        weight, bias, dtype = base._parameters["weight"], base._parameters["bias"], x.dtype
        weights = (weight, factor._parameters["weight"], expand._parameters["weight"])
        plain = (
            not factor.switch.exact
            and (not self.training or type(modules["lora_dropout"]._modules[key]) is nn.Identity)
            and expand._parameters["bias"] is None
            and not any(tensor is not None and tensor.requires_grad for tensor in (weight, bias))
            and all(tensor is not None and tensor.dtype == dtype for tensor in weights)
            and not torch.is_autocast_enabled(x.device.type)
            and not (_is_hooked(factor) or _is_hooked(expand) or _is_hooked(base))
        )
        return (factor, base, expand, self.scaling[key]) if plain else None


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


class _Product(torch.autograd.Function):
    """y = x W' + b + scaling u B' with u = x A', A = mu + P, for frozen W and b.

    Backward, with g the gradient of y: ``dB = scaling g' u``, ``du = scaling g B``, ``dmu = dP = du' x`` and
    ``dx = g W + du A``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        noise: Tensor,
        expand: Tensor,
        base: Tensor,
        bias: Tensor | None,
        scaling: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a = mean + noise.to(mean.dtype)
        u = rows @ a.mT
        y = linear(rows, base, bias).addmm_(u, expand.mT, alpha=scaling)
        ctx.save_for_backward(rows, u, a, expand, base)
        ctx.scaling, ctx.shape, ctx.noise_dtype = scaling, x.shape, noise.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, u, a, expand, base = ctx.saved_tensors
        needs_x, needs_mean, needs_noise, needs_expand = ctx.needs_input_grad[:4]
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        du = (g @ expand).mul_(ctx.scaling)
        dx = (g @ base).addmm_(du, a).view(ctx.shape) if needs_x else None
        da = du.mT @ rows if needs_mean or needs_noise else None
        dexpand = (g.mT @ u).mul_(ctx.scaling) if needs_expand else None
        dnoise = da.to(ctx.noise_dtype) if da is not None and needs_noise else None
        return dx, da if needs_mean else None, dnoise, dexpand, None, None, None
