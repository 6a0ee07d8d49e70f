"""The Linear that adds the current noise to LoRA-A."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bayes_lora.errors import AdapterError, CheckpointingError


@dataclass
class Switch:
    """Shared by all perturbed Linears of a network: on while its `BayesianLoRA` runs the forward pass.

    Attributes:
        on: whether a forward pass sees the noise.
        with_grad: whether that pass is to be differentiated.
        num_rows: rows that the batch has when draws are stacked along it, else None.
    """

    on: bool = False
    with_grad: bool = False
    num_rows: int | None = None


class PerturbedLinear(nn.Linear):
    """x -> x (mu + P)' with mu the shared LoRA-A weight and P the current perturbation.

    P has shape (rank, in_features), or (draw, rank, in_features): then the first dimension of x holds the rows of
    draw 0, then those of draw 1, and so on. It counts only while the switch is on, or inside a backward pass, where
    gradient checkpointing computes the forward pass again; in any other call this is the plain Linear.
    """

    def __init__(self, source: nn.Linear, switch: Switch, name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.weight, self.bias = source.weight, source.bias
        self.train(source.training)
        self.switch = switch
        self.name = name
        self.perturbation: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        noise = self.perturbation
        if noise is None or not (self.switch.on or _in_backward()):
            if torch.is_grad_enabled():
                self.perturbation = None  # gradient checkpointing must recompute this pass without it, too
            return super().forward(x)
        if self.switch.on and self.switch.with_grad and not torch.is_grad_enabled():
            raise CheckpointingError(
                f"{self.name}: it runs without gradients inside a pass that is to be differentiated, as reentrant "
                "gradient checkpointing does; the noise would get no gradient. Use gradient_checkpointing_enable("
                "gradient_checkpointing_kwargs={'use_reentrant': False})."
            )
        weight = self.weight + noise.to(self.weight)
        if noise.dim() == 2:
            return linear(x, weight, self.bias)
        num_draws, rows = weight.shape[0], self.switch.num_rows
        if x.shape[0] != rows:
            raise AdapterError(
                f"{self.name}: its input has {x.shape[0]} rows where {num_draws} stacked draws have {rows}, so rows "
                "cannot be told apart by draw (the network reorders or merges them). Predict with draws_per_pass=1."
            )
        grouped = x.reshape(num_draws, -1, x.shape[-1])
        return (grouped @ weight.mT).reshape(*x.shape[:-1], weight.shape[-2])

    def to_linear(self) -> nn.Linear:
        """A plain Linear on the same weight."""
        plain = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(plain)
        plain.in_features, plain.out_features = self.in_features, self.out_features
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        # The noise belongs to one forward pass and its graph: a copy or a file starts without it.
        return {**self.__dict__, "perturbation": None}


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
