"""DoRA under noise: the magnitude stays a point, the direction is that of the draw."""

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import linear

from bayes_lora.adapters.perturbation import PerturbedLinear
from bayes_lora.errors import UnsupportedAdapterError
from bayes_lora.precision import full_precision, posterior_dtype


class PerturbedDora(DoraLinearLayer):  # type: ignore[misc]
    """What PEFT's DoRA adds to the base layer's output; under noise, so that the layer multiplies with

        W' = diag(m / n) (W + s B A),   n_o = || (W + s B A)_o ||,   A = mu + P

    m, (out_features,), is the magnitude. As in PEFT and in the paper, n is a constant in the backward pass: what the
    noise does to the norm teaches neither the mean nor the guide.

    PEFT takes n from B (A I), with the identity run through LoRA-A as if it were a batch. Stacked draws share a batch
    out among them; and inside `peft.helpers.DoraCaching` n would stay that of the first draw. Here each row has the n
    of its own draw, and nothing is kept. Without noise this is PEFT's forward pass.

    A module becomes one by its class alone (`perturb_dora`), so that parameters, names and state dict stay.

    Source: Liu et al. 2024, DoRA (arXiv 2402.09353), equation 5 and section 4.3.
    """

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: Any,
        lora_B: nn.Linear,
        scaling: float,
        base_layer: Any,
        base_result: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        draw = lora_A.active_draw() if isinstance(lora_A, PerturbedLinear) else None
        if draw is None or (draw.dim() == 2 and lora_A.noise_state.exact):
            parts = {"lora_A": lora_A, "lora_B": lora_B, "base_layer": base_layer, "base_result": base_result}
            return super().forward(x, scaling=scaling, **parts, **kwargs)  # type: ignore[no-any-return]
        weight = dequantize_module_weight(base_layer)
        weight = weight.mT if self.fan_in_fan_out else weight
        update = scaling * lora_B(lora_A(x))
        gain = dora_gain(self.weight, weight, draw, lora_B.weight, scaling)
        if draw.dim() == 3:
            gain = gain.repeat_interleave(len(x) // len(draw), 0).unflatten(0, (len(x), *(1,) * (x.dim() - 2)))
        if base_result is None:  # x has gone through dropout, which the base layer's own output has not
            product = linear(x, weight.to(x.dtype))
        else:
            product = base_result if base_layer.bias is None else base_result - base_layer.bias
        added: Tensor = (gain - 1) * product + gain * update
        return added


def require_norm(name: str, layer: LoraLayer) -> None:
    """Raise unless the norm of the base weight can be taken again and again.

    Raises:
        UnsupportedAdapterError: the weight is of 8 bits, on the CPU.
    """
    weight = layer.get_base_layer().weight
    if type(weight).__name__ == "Int8Params" and weight.device.type == "cpu":
        # peft 0.21.2 puts a new weight into the layer, of which bitsandbytes 0.50.2 then loses the scales.
        raise UnsupportedAdapterError(
            f"{name}: DoRA on an 8-bit base breaks on the CPU at the second pass, in PEFT itself. Load the base with "
            "BitsAndBytesConfig(load_in_4bit=True), load it on a GPU, or drop use_dora from LoraConfig."
        )


def perturb_dora(layer: LoraLayer, key: str) -> None:
    """Let the magnitude of an adapter, if it has one, know draws."""
    if key in layer.lora_magnitude_vector:
        layer.lora_magnitude_vector[key].__class__ = PerturbedDora


def restore_dora(layer: LoraLayer) -> None:
    """Undo `perturb_dora`."""
    for magnitude in layer.lora_magnitude_vector.values():
        if type(magnitude) is PerturbedDora:
            magnitude.__class__ = DoraLinearLayer


@full_precision
def dora_gain(magnitude: Tensor, weight: Tensor, draw: Tensor, expand: Tensor, scaling: float) -> Tensor:
    """m / n, ([draw,] out_features), where n is no part of the graph.

    Args:
        magnitude: m, (out_features,).
        weight: W, (out_features, in_features).
        draw: A, ([draw,] rank, in_features).
        expand: B, (out_features, rank).
        scaling: s.
    """
    with torch.no_grad():
        like = posterior_dtype(draw.dtype)
        weight, expand = weight.to(like), expand.to(like)
        draws = draw.to(like).reshape(-1, *draw.shape[-2:])  # one after the other, since B A has the size of W
        norms = [vector_norm(torch.addmm(weight, expand, a, alpha=scaling), dim=-1) for a in draws]
    return magnitude / torch.stack(norms).view(*draw.shape[:-2], -1)
