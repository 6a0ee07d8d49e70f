"""A LoRA layer under noise in one step: the same products as PEFT's, with fewer passes over the activations."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from bayes_lora.perturbation import PerturbedLinear

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
        if len(active) != 1 or self.merged or self.disable_adapters:
            return None
        key = active[0]
        factor, expand, base = self.lora_A[key], self.lora_B[key], self.base_layer
        dropout = self.lora_dropout[key]
        plain = (
            isinstance(factor, PerturbedLinear)
            and not factor.switch.exact
            and type(base) is nn.Linear
            and type(expand) is nn.Linear
            and expand.bias is None
            and not base.weight.requires_grad
            and not (base.bias is not None and base.bias.requires_grad)
            and (type(dropout) is nn.Identity or not self.training)
            and x.dtype == base.weight.dtype == factor.weight.dtype == expand.weight.dtype
            and not torch.is_autocast_enabled(x.device.type)
            and not torch.compiler.is_compiling()
            and not any(_is_hooked(module) for module in (factor, expand, base, dropout))
        )
        return (factor, base, expand, self.scaling[key]) if plain else None


def _is_hooked(module: nn.Module) -> bool:
    own = module.__dict__
    return "forward" in own or any(own[name] for name in _HOOKS)


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
