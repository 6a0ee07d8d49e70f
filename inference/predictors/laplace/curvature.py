"""The generalized Gauss-Newton matrix of one Linear, summed over the examples: its diagonal, or Kronecker factors.

With logits f(x; theta), J_i = df(x_i) / dtheta and the softmax Hessian ``Lambda_i = diag(p_i) - p_i p_i'``, the GGN of
the SUMMED cross-entropy of n training rows is

    H = sum_i J_i' Lambda_i J_i = sum_i sum_c v_ic v_ic',    v_ic = J_i' s_ic

where the columns ``s_c = sqrt(p_c) (e_c - p)`` are a square root of Lambda: ``sum_c s_c s_c' = Lambda``. So C backward
passes, one for each class, give H exactly; no labels are sampled.
"""

from typing import Protocol

import torch
from torch import Tensor

from bayes_lora.inference.predictors.laplace.blocks import Block, DiagonalBlock, KroneckerBlock
from bayes_lora.inference.predictors.laplace.gradients import LinearGradients
from bayes_lora.inference.predictors.laplace.low_rank import outer_sum
from bayes_lora.precision import full_precision


def hessian_columns(logits: Tensor) -> Tensor:
    """s_c = sqrt(p_c) (e_c - p): columns of a square root of the softmax Hessian.

    Args:
        logits: (example, class).

    Returns:
        (column, example, class), as many columns as classes, in double precision: of a sure network, 1 - p is small.
    """
    probs = logits.double().softmax(-1)
    columns = torch.eye(logits.shape[-1], dtype=probs.dtype, device=logits.device) - probs.unsqueeze(1)
    return (probs.sqrt().unsqueeze(-1) * columns).transpose(0, 1)


class Curvature(Protocol):
    """Collects the curvature of one Linear from the gradients of `hessian_columns`, batch by batch."""

    def add(self, gradients: LinearGradients) -> None: ...

    def block(self) -> Block: ...


class DiagonalCurvature:
    """The exact diagonal of H: sum_i sum_c (sum_t g_ict a_it')^2, elementwise."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.total = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, gradients: LinearGradients) -> None:
        self.total += gradients.of_weight().square().sum((0, 1), dtype=torch.float64)

    def block(self) -> DiagonalBlock:
        return DiagonalBlock(self.total)


class KroneckerCurvature:
    """K-FAC: H ~ L (x) R, L (out, out) from the gradients at the outputs and R (in, in) from the inputs.

    Where a Linear is applied at several positions t (tokens) of one example, there are two approximations
    (Eschenhagen et al. 2023, arXiv 2311.00636, section 3):

        expand    L = sum_{i,t,c} g_ict g_ict',                  R = (1 / n_positions) sum_{i,t} a_it a_it'
        reduce    L = sum_{i,c} (sum_t g_ict) (sum_t g_ict)',    R = (1 / n_examples) sum_i mean_t(a_it) mean_t(a_it)'

    "Expand" counts positions as if they were examples; "reduce" first sums over them, as the gradient of one example
    does. With one position they are equal, and exact for one example, or for any number with the same g. With more
    positions "reduce" is exact for a linear network that averages over them, if examples have the same g; "expand"
    loses the products between positions there.

    Positions without influence on the logits (g = 0 for every class: padding, or all but the first token in the last
    layer of a network that reads its first) count in neither factor, so how a batch was padded does not matter.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device, *, reduce: bool, max_rank: int | None) -> None:
        self.reduce = reduce
        self.count = 0
        self.left = outer_sum(shape[0], max_rank, device)
        self.right = outer_sum(shape[1], max_rank, device)

    @full_precision
    def add(self, gradients: LinearGradients) -> None:
        inputs, outputs = gradients.inputs, gradients.outputs
        active = (outputs != 0).any(-1).any(0)  # (example, position)
        if self.reduce:
            positions = active.sum(1)
            inputs = (inputs * active.unsqueeze(-1)).sum(1) / positions.clamp_min(1).unsqueeze(-1)
            inputs, outputs = inputs[positions > 0], outputs.sum(2)[:, positions > 0]
        else:
            inputs, outputs = inputs[active], outputs[:, active]
        self.count += len(inputs)
        self.right.add(inputs)
        self.left.add(outputs.flatten(0, 1))

    def block(self) -> KroneckerBlock:
        left_values, left_vectors = self.left.eigen()
        right_values, right_vectors = self.right.eigen()
        return KroneckerBlock(left_values, left_vectors, right_values / max(self.count, 1), right_vectors)
