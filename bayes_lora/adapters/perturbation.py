"""The linear map that has the current draw of LoRA-A as its weight."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bayes_lora.errors import AdapterError, CheckpointingError


@dataclass
class NoiseState:
    """Shared by all perturbed modules of a network: on while its `BayesianLoRA` runs the forward pass.

    Attributes:
        on: whether a forward pass sees the noise.
        with_grad: whether that pass is to be differentiated.
        num_rows: rows that the batch has when draws are stacked along it, else None.
        fuse_stacks: whether a batch of stacked draws goes through the fused layer.
        exact: whether the noise is zero, so that a pass has to equal one without noise bit for bit.
    """

    on: bool = False
    with_grad: bool = False
    num_rows: int | None = None
    fuse_stacks: bool = False
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


class Perturbed(nn.Module):
    """A linear map that applies A = mu + P, the current draw: mu is the LoRA-A weight that it shares, P the noise.

    A has shape (rank, in_features), or (draw, rank, in_features): then the first dimension of x holds the rows of
    draw 0, then those of draw 1, and so on. It counts only while the noise is on, or inside a backward pass, where
    gradient checkpointing computes the forward pass again; in any other call this is the plain module.

    Args:
        source: the plain module.
        noise_state: shared by all of a network.
        name: the adapter's, for errors.
    """

    weight: Tensor

    def __init__(self, source: nn.Module, noise_state: NoiseState, name: str) -> None:
        _take_over(self, source)
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
        draw = self.active_draw()
        if draw is None:
            return super().forward(x)  # type: ignore[no-any-return]
        if draw.dim() == 2:
            return self.product(x, draw)
        return self.product(self.by_draw(x, draw), draw).flatten(0, 1)

    def by_draw(self, x: Tensor, draw: Tensor) -> Tensor:
        """(draw, row, ...), of rows that are grouped by draw.

        Raises:
            AdapterError: these are not all rows of the batch, or others.
        """
        rows = self.noise_state.num_rows
        if x.shape[0] != rows:
            raise AdapterError(
                f"{self.name}: its input has {x.shape[0]} rows where {len(draw)} stacked draws have {rows}, so rows "
                "cannot be told apart by draw (the network reorders or merges them). Predict with draws_per_pass=1."
            )
        return x.unflatten(0, (len(draw), -1))  # type: ignore[no-any-return]

    def product(self, x: Tensor, a: Tensor) -> Tensor:
        """A x, of x ([draw,] row, ...) and A ([draw,] rank, in_features)."""
        raise NotImplementedError

    def to_plain(self) -> nn.Module:
        """A plain module on the same weight."""
        plain = next(kind for kind, perturbed in PERTURBED.items() if perturbed is type(self))
        return _take_over(plain.__new__(plain), self)

    def __getstate__(self) -> dict[str, Any]:
        # The draw belongs to one forward pass and its graph: a copy or a file starts without it.
        return {**self.__dict__, "draw": None}


class PerturbedLinear(Perturbed, nn.Linear):
    """x -> x A'."""

    def product(self, x: Tensor, a: Tensor) -> Tensor:
        if a.dim() == 2:
            return linear(x, a, self.bias)
        return (x.flatten(1, -2) @ a.mT).reshape(*x.shape[:-1], a.shape[-2])


class _PerturbedConv(Perturbed):
    """A convolution: in_features are the channels of x times the size of the kernel, as its weight has them."""

    def product(self, x: Tensor, a: Tensor) -> Tensor:
        if a.dim() == 3:
            return torch.stack([self.product(rows, one) for rows, one in zip(x, a, strict=True)])
        convolved: Tensor = self._conv_forward(x, a.reshape(self.weight.shape), self.bias)  # type: ignore[operator]
        return convolved


class PerturbedConv1d(_PerturbedConv, nn.Conv1d):
    """Over sequences."""


class PerturbedConv2d(_PerturbedConv, nn.Conv2d):
    """Over pictures."""


class PerturbedConv3d(_PerturbedConv, nn.Conv3d):
    """Over volumes."""


LinearMap = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
PERTURBED: dict[type[nn.Module], type[Perturbed]] = {
    nn.Linear: PerturbedLinear,
    nn.Conv1d: PerturbedConv1d,
    nn.Conv2d: PerturbedConv2d,
    nn.Conv3d: PerturbedConv3d,
}


def _take_over(module: nn.Module, source: nn.Module) -> nn.Module:
    """Give a new module the weight, the settings and the mode of another."""
    nn.Module.__init__(module)
    new, old = vars(module), vars(source)
    new.update({name: old[name] for name in old.keys() - new.keys() - {"noise_state", "name", "draw"}})
    module._parameters.update(source._parameters)
    return module.train(source.training)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
