"""The Linear that multiplies with the current draw of LoRA-A."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bayes_lora.errors import AdapterError, CheckpointingError


@dataclass
class NoiseState:
    """Shared by all perturbed Linears of a network: on while its `BayesianLoRA` runs the forward pass.

    Attributes:
        on: whether a forward pass sees the noise.
        with_grad: whether that pass is to be differentiated.
        num_rows: rows that the batch has when draws are stacked along it, else None.
        exact: whether the noise is zero, so that a pass has to equal one without noise bit for bit.
    """

    on: bool = False
    with_grad: bool = False
    num_rows: int | None = None
    exact: bool = False
    _pending: "weakref.ref[Pass] | None" = None

    def watch(self, logits: Tensor) -> Tensor:
        """The logits of a pass whose backward pass will compute parts of it again, and so still needs its noise."""
        token = Pass()
        self._pending = weakref.ref(token)
        return _Watch.apply(logits, token)  # type: ignore[no-any-return,no-untyped-call]

    def require_settled(self) -> None:
        """Raise unless the pass watched last has been back-propagated, or its graph is gone.

        Raises:
            CheckpointingError: the noise it needs for that is about to be replaced.
        """
        pending = None if self._pending is None else self._pending()
        if pending is not None and not pending.settled:
            raise CheckpointingError(
                "with gradient checkpointing, another forward pass with gradients starts before the backward pass of "
                "the one before, which would then be computed again with the wrong noise. Call backward() after each "
                "loss (num_particles=1), or evaluate under torch.no_grad()."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pending": None}


class Pass:
    """A forward pass that is to be back-propagated; it lives as long as its graph."""

    settled = False


class _Watch(torch.autograd.Function):
    """The identity, whose backward pass says that it has begun."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token: Pass) -> Tensor:
        ctx.token = token
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.token.settled = True
        return gradients[0], None


class PerturbedLinear(nn.Linear):
    """x -> x A' with A = mu + P the current draw: mu is the shared LoRA-A weight, P the noise.

    A has shape (rank, in_features), or (draw, rank, in_features): then the first dimension of x holds the rows of
    draw 0, then those of draw 1, and so on. It counts only while the noise is on, or inside a backward pass, where
    gradient checkpointing computes the forward pass again; in any other call this is the plain Linear.
    """

    def __init__(self, source: nn.Linear, noise_state: NoiseState, name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.weight, self.bias = source.weight, source.bias
        self.train(source.training)
        self.noise_state = noise_state
        self.name = name
        self.draw: Tensor | None = None

    def active_draw(self) -> Tensor | None:
        """A, where this forward pass is to see it.

        Raises:
            CheckpointingError: the noise would get no gradient, or a pass waits for the noise that this one ends.
        """
        draw = self.draw
        # Recomputing has gradients on. That is asked first, since torch.compile breaks its graph at the other question.
        if draw is None or not (self.noise_state.on or (torch.is_grad_enabled() and _in_backward())):
            if draw is not None and torch.is_grad_enabled():
                # Gradient checkpointing must recompute this pass without noise, too.
                self.noise_state.require_settled()
                self.draw = None
            return None
        if self.noise_state.on and self.noise_state.with_grad and not torch.is_grad_enabled():
            raise CheckpointingError(
                f"{self.name}: it runs without gradients inside a pass that is to be differentiated, as reentrant "
                "gradient checkpointing does; the noise would get no gradient. Use gradient_checkpointing_enable("
                "gradient_checkpointing_kwargs={'use_reentrant': False})."
            )
        return draw

    def forward(self, x: Tensor) -> Tensor:
        weight = self.active_draw()
        if weight is None:
            return super().forward(x)
        if weight.dim() == 2:
            return linear(x, weight, self.bias)
        num_draws, rows = weight.shape[0], self.noise_state.num_rows
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
        # The draw belongs to one forward pass and its graph: a copy or a file starts without it.
        return {**self.__dict__, "draw": None}


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
