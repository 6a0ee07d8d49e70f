"""The slow, obvious way: Jacobians by torch.func, the whole GGN, dense inverses."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import peft
import torch
from torch import Tensor, nn

from bayes_lora.inference.predictors.laplace.blocks import Block, DiagonalBlock, KroneckerBlock
from bayes_lora.inference.predictors.laplace.linears import NamedLinear
from bayes_lora.models import network_logits
from tests.networks import Batch, build_network

IN, RANK, WIDTH, CLASSES = 6, 2, 5, 3


def build_lively(**options: Any) -> peft.PeftModel:
    """The small BERT with weights so large that its adapters matter, and no two examples are alike to it.

    At its usual initialization the curvature is a billionth of a prior precision of 1, and any error would pass.
    """
    network = build_network(**options)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" not in name and parameter.dim() == 2:
                std = 1.0 if "embeddings" in name else 2 * parameter.shape[1] ** -0.5
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


class Pooled(nn.Module):
    """A linear network: `mix` at every position, the mean over positions, `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(IN, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.mix(x).mean(1)))


def build_pooled() -> peft.PeftModel:
    """`Pooled` with LoRA on `mix`, whose own weight is zero, in float64."""
    torch.manual_seed(3)
    network = peft.get_peft_model(Pooled(), peft.LoraConfig(r=RANK, target_modules=["mix"])).double().eval()
    for name, parameter in network.named_parameters():
        if "base_layer" in name:
            nn.init.zeros_(parameter)
        elif "lora_" in name:
            nn.init.normal_(parameter, std=0.7)
    return network


def indistinguishable_rows(network: peft.PeftModel, num_examples: int, num_positions: int) -> Batch:
    """Rows that differ only where LoRA-A is blind, so that every example has the same logits and softmax Hessian."""
    generator = torch.Generator().manual_seed(4)
    factor = network.base_model.model.mix.lora_A["default"].weight
    blind = torch.eye(IN, dtype=torch.float64) - torch.linalg.pinv(factor) @ factor
    noise = torch.randn(num_examples, num_positions, IN, generator=generator, dtype=torch.float64)
    shared = torch.randn(IN, generator=generator, dtype=torch.float64)
    return {"x": shared + noise @ blind.detach().T, "labels": torch.arange(num_examples) % CLASSES}


def random_rows(num_examples: int, num_positions: int) -> Batch:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(num_examples, num_positions, IN, generator=generator, dtype=torch.float64)
    return {"x": x, "labels": torch.arange(num_examples) % CLASSES}


def without_labels(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}


def rows_of(batch: Batch, *index: int) -> Batch:
    return {name: value[list(index)] for name, value in batch.items()}


def dense_jacobians(network: nn.Module, linears: Sequence[NamedLinear], batch: Batch) -> list[Tensor]:
    """For each Linear J (example, class, out, in), the bias being the last column."""
    wanted = {id(parameter) for linear in linears for parameter in linear.parameters()}
    chosen = {name: value.detach() for name, value in network.named_parameters() if id(value) in wanted}
    names = {id(value): name for name, value in network.named_parameters()}
    inputs = without_labels(batch)

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        given = {f"network.{name}": value for name, value in parameters.items()}
        found: Tensor = torch.func.functional_call(_Logits(network), given, (inputs,))
        return found

    found = torch.func.jacrev(logits, chunk_size=1)(chosen)
    per_parameter = [[found[names[id(parameter)]].detach() for parameter in linear.parameters()] for linear in linears]
    # A bias (example, class, out) becomes a column.
    return [
        torch.cat([part.unflatten(2, (part.shape[2], -1)).flatten(3) for part in parts], -1) for parts in per_parameter
    ]


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Batch) -> Tensor:
        return network_logits(self.network, inputs)


def softmax_hessians(network: nn.Module, batch: Batch) -> Tensor:
    """diag(p) - p p', (example, class, class)."""
    with torch.no_grad():
        probs = network_logits(network, without_labels(batch)).softmax(-1)
    return probs.diag_embed() - probs.unsqueeze(-1) * probs.unsqueeze(-2)


def dense_ggn(jacobian: Tensor, hessians: Tensor) -> Tensor:
    """sum_i J_i' Lambda_i J_i for J (example, class, ...), flat: (parameter, parameter)."""
    flat = jacobian.flatten(2)
    return torch.einsum("ncp,ncd,ndq->pq", flat, hessians, flat)


def dense_curvature(block: Block) -> Tensor:
    """H of a block, as a matrix over the flattened (out, in)."""
    if isinstance(block, DiagonalBlock):
        return block.curvature.flatten().diag()
    assert isinstance(block, KroneckerBlock)
    left = block.left_vectors * block.left_values @ block.left_vectors.mT
    right = block.right_vectors * block.right_values @ block.right_vectors.mT
    return torch.kron(left.contiguous(), right.contiguous())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of what is expected."""
    return float((found - expected).norm() / expected.norm())
