"""LoRA on a bare parameter, such as the stacked weights of all experts of a layer, under noise."""

from typing import Any

from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor

from bayes_lora.adapters.perturbation import Perturbed
from bayes_lora.errors import AdapterError


class PerturbedParam(ParamWrapper):  # type: ignore[misc]
    """PEFT's wrapper of a parameter (`target_parameters`), which under noise puts

        W_e + s B_e A_e,   A = mu + P

    in its place for a forward pass, for every expert e. PEFT has the A_e of all experts below each other in one
    matrix, (experts * rank, in_features), and so has the posterior: one adapter of that rank, whose covariance is over
    the rows of all experts together. A parameter of two dimensions is one expert.

    The weight is one for the whole pass, so that draws cannot share a pass. Without noise this is PEFT's forward pass.

    A module becomes one by its class alone (`perturb_param`), so that parameters, names and state dict stay.
    """

    def get_delta_factors(self, adapter_name: str) -> tuple[Tensor, Tensor, float]:
        """As PEFT's, of the draw: two factors for each expert, and the scaling."""
        draw = self._draw(adapter_name)
        if draw is None:
            return super().get_delta_factors(adapter_name)  # type: ignore[no-any-return]
        expand = self.lora_B[adapter_name].weight
        a = draw.unflatten(0, (self.num_experts, -1))  # (expert, rank, in_features)
        b = expand.unflatten(1, (-1, self.num_experts)).movedim(2, 0)  # (expert, out_features, rank)
        param = self.get_param()
        left, right = (b, a) if self._did_swap_in_out_features or param.dim() == 2 else (a.mT, b.mT)
        return left.to(param.dtype), right.to(param.dtype), self.scaling[adapter_name]

    def get_delta_weight(self, adapter_name: str, *args: Any, **kwargs: Any) -> Tensor:
        """Their product, of the parameter's shape."""
        if self._draw(adapter_name) is None:
            return super().get_delta_weight(adapter_name, *args, **kwargs)  # type: ignore[no-any-return]
        left, right, scaling = self.get_delta_factors(adapter_name)
        return (scaling * left @ right).view(self.get_param().shape)

    def _draw(self, adapter_name: str) -> Tensor | None:
        factor = self.lora_A[adapter_name]
        draw = factor.active_draw() if isinstance(factor, Perturbed) else None
        if draw is not None and draw.dim() == 3:
            raise AdapterError(
                f"{factor.name}: a pass has one weight for all of its rows, and {len(draw)} draws are stacked in it. "
                "Predict with draws_per_pass=1."
            )
        return None if draw is None or factor.noise_state.exact else draw


def perturb_param(layer: LoraLayer) -> None:
    """Let the wrapper of a parameter know draws; another kind of layer is left alone."""
    if type(layer) is ParamWrapper:
        layer.__class__ = PerturbedParam


def restore_param(layer: LoraLayer) -> None:
    """Undo `perturb_param`."""
    if type(layer) is PerturbedParam:
        layer.__class__ = ParamWrapper
