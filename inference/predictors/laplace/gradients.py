"""Gradients of the logits at the outputs of chosen Linears, for every class and example at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayes_lora.errors import AdapterError
from bayes_lora.gradients import frozen
from bayes_lora.inference.predictors.laplace.linears import NamedLinear
from bayes_lora.inference.predictors.laplace.option_logits import Layout, logits_of
from bayes_lora.inference.predictors.predictor import Inputs
from bayes_lora.precision import full_precision, posterior_dtype

# Columns share a backward pass from so many on, as many of them as make up so many rows: fewer gain nothing by it, and
# more take memory for nothing.
_FEWEST_BATCHED, _ROWS_AT_ONCE = 8, 512


@dataclass(frozen=True)
class LinearGradients:
    """What one Linear received and what came back to it: z_t = W a_t at position t, g_t = d(c' f) / dz_t.

    The gradient of ``c' f(x)`` with respect to W is ``sum_t g_t a_t'``. Positions are tokens, and calls where the
    Linear is called several times; both tensors are float32 or better.

    Attributes:
        inputs: a, (example, position, in), with a last 1 where the Linear has a bias.
        outputs: g, (column, example, position, out), for every column c that was propagated back.
    """

    inputs: Tensor
    outputs: Tensor

    @full_precision
    def of_weight(self) -> Tensor:
        """sum_t g_t a_t', (example, column, out, in)."""
        return torch.einsum("cnto,nti->ncoi", self.outputs, self.inputs)


def backpropagate(
    network: nn.Module,
    linears: Sequence[NamedLinear],
    inputs: Inputs,
    columns: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Iterator[LinearGradients]]:
    """One forward pass, a backward pass for every column (many columns share one), and then one Linear after another.

    No gradient of a parameter is computed, nor stored in it: the backward passes end at the outputs of the Linears, of
    which the gradients are all that is kept. With them the gradient of one Linear's weight is made when its turn
    comes, so that the Jacobian of all parameters never exists.

    Args:
        network: the classifier, or a `LikelihoodNetwork` of multiple choice, in evaluation mode.
        linears: those wanted.
        inputs: a batch on the network's device, without labels.
        columns: of the logits (example, class), the vectors c to propagate back, (column, example, class).

    Returns:
        The logits (example, class), detached, in float32 or better, -inf for options that a row does not have, and the
        gradients in the order of `linears`.

    Raises:
        AdapterError: a Linear was not called, was given rows that are not the batch's, or the logits do not depend on
            any of them.
    """
    with torch.enable_grad(), frozen(network), _recorded(linears) as calls:
        logits, layout = logits_of(network, inputs)
        _check_calls(linears, calls, len(logits) * layout.copies)
        if not logits.requires_grad:
            raise AdapterError(
                f"the logits do not depend on any of {', '.join(calls)}: the network detaches them on the way. Run it "
                "without torch.no_grad or detach inside its forward."
            )
        precise = logits.detach().to(posterior_dtype(logits.dtype))
        targets = [output for calls_of_one in calls.values() for _, output in calls_of_one]
        passes = _backward_passes(logits, targets, columns(precise).to(logits.dtype))
    return precise, _one_by_one(linears, calls, passes, layout)


def _backward_passes(logits: Tensor, targets: Sequence[Tensor], cotangents: Tensor) -> list[tuple[Tensor, ...]]:
    """The gradient at every target of each column, several columns in one pass where there are many."""
    at_once = max(1, _ROWS_AT_ONCE // len(logits))
    if len(cotangents) < _FEWEST_BATCHED or at_once == 1:
        return _one_pass_each(logits, targets, cotangents)
    parts = cotangents.split(at_once)
    found: list[tuple[Tensor, ...]] = []
    try:
        for part in parts:
            grads = torch.autograd.grad(
                logits, targets, part, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
            filled = [
                target.new_zeros(len(part), *target.shape) if grad is None else grad
                for grad, target in zip(grads, targets, strict=True)
            ]
            found.extend(zip(*(grad.unbind(0) for grad in filled), strict=True))
    except RuntimeError:  # an operation of this network cannot be batched: quantized weights, for one
        return _one_pass_each(logits, targets, cotangents)
    return found


def _one_pass_each(logits: Tensor, targets: Sequence[Tensor], cotangents: Tensor) -> list[tuple[Tensor, ...]]:
    return [
        # Not every target reaches the logits: padding, or an adapter after the tokens that count.
        torch.autograd.grad(logits, targets, column, retain_graph=index + 1 < len(cotangents), materialize_grads=True)
        for index, column in enumerate(cotangents)
    ]


def _one_by_one(
    linears: Sequence[NamedLinear],
    calls: dict[str, list[tuple[Tensor, Tensor]]],
    passes: list[tuple[Tensor, ...]],
    layout: Layout,
) -> Iterator[LinearGradients]:
    first = 0
    for linear in linears:
        received = [given for given, _ in calls.pop(linear.name)]
        last = first + len(received)
        # Several calls of one Linear add their gradients, as positions do.
        inputs = torch.cat([layout.of_inputs(_precise(given)) for given in received], dim=1)
        outputs = torch.stack(
            [torch.cat([layout.of_gradients(_precise(g)) for g in grads[first:last]], dim=1) for grads in passes]
        )
        first = last
        if linear.module.bias is not None:
            inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=-1)
        yield LinearGradients(inputs, outputs)


def _precise(values: Tensor) -> Tensor:
    """In float32 or better."""
    return values.detach().to(posterior_dtype(values.dtype))


@contextmanager
def _recorded(linears: Sequence[NamedLinear]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Input and output of every call of the Linears inside, by name; the outputs are part of the graph."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {linear.name: [] for linear in linears}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def record(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()
            calls[name].append((args[0].detach(), output))

        return record

    handles = [linear.module.register_forward_hook(recorder(linear.name)) for linear in linears]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _check_calls(linears: Sequence[NamedLinear], calls: dict[str, list[tuple[Tensor, Tensor]]], num_rows: int) -> None:
    for linear in linears:
        if not calls[linear.name]:
            raise AdapterError(
                f"{linear.name} was not called in the forward pass, so it has no curvature: the network uses its "
                "weight in another way, runs compiled, or does not use it. Leave it out of target_modules (or choose "
                "another head), and do not compile the network."
            )
        for given, _ in calls[linear.name]:
            if given.dim() < 2 or len(given) != num_rows:
                raise AdapterError(
                    f"{linear.name}: its input has shape {tuple(given.shape)} where the batch has {num_rows} "
                    "rows, so examples cannot be told apart (the network reorders or merges rows). Leave the layer "
                    "out of target_modules."
                )
