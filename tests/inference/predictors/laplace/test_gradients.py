"""Backward passes that many columns share, against one for each."""

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from bayes_lora.inference.predictors.laplace import gradients
from bayes_lora.inference.predictors.laplace.gradients import backpropagate
from bayes_lora.inference.predictors.laplace.linears import select_linears
from tests.networks import Batch, build_bert

NUM_CLASSES = 20


class Opaque(torch.autograd.Function):
    """The identity, whose backward pass looks at a number, which no batched pass can."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (1.0 if float(grads[0].abs().sum()) >= 0 else 0.0)


class Detour(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return Opaque.apply(self.inner(x))  # type: ignore[no-any-return,no-untyped-call]


def build() -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query", "value"])
    network = peft.get_peft_model(build_bert(num_labels=NUM_CLASSES), config).double().eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return network


def unit_columns(logits: Tensor) -> Tensor:
    return torch.eye(NUM_CLASSES, dtype=logits.dtype).unsqueeze(1).expand(-1, len(logits), -1)


def outputs_of(network: Any, batch: Batch) -> list[Tensor]:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    _, found = backpropagate(network, select_linears(network, "all_and_head"), inputs, unit_columns)
    return [of_linear.outputs for of_linear in found]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The columns of each backward pass."""
    found: list[int] = []
    grad = torch.autograd.grad

    def counted(outputs: Any, inputs: Any, columns: Tensor, **options: Any) -> Any:
        found.append(len(columns) if options.get("is_grads_batched") else 1)
        return grad(outputs, inputs, columns, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return found


@pytest.mark.parametrize(("rows_at_once", "expected"), [(512, [20]), (40, [8, 8, 4]), (5, [1] * 20)])
def test_shared_passes_give_what_single_ones_give(
    batch: Batch, passes: list[int], monkeypatch: pytest.MonkeyPatch, rows_at_once: int, expected: list[int]
) -> None:
    network = build()
    monkeypatch.setattr(gradients, "_ROWS_AT_ONCE", 0)
    alone = outputs_of(network, batch)
    assert passes == [1] * NUM_CLASSES
    passes.clear()
    monkeypatch.setattr(gradients, "_ROWS_AT_ONCE", rows_at_once)
    shared = outputs_of(network, batch)
    assert passes == expected
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-16)
    assert alone[0].abs().max() > 1e-6


def test_what_cannot_be_batched_has_a_pass_for_each(batch: Batch, passes: list[int]) -> None:
    network = build()
    network.base_model.model.bert.pooler.dense = Detour(network.base_model.model.bert.pooler.dense)
    found = outputs_of(network, batch)
    assert passes == [NUM_CLASSES] + [1] * NUM_CLASSES
    for one, other in zip(found, outputs_of(build(), batch), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-16)
