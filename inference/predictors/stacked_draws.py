"""Several draws of LoRA-A in one forward pass: the rows of a batch, repeated for each."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayes_lora.inference.predictors.predictor import Inputs
from bayes_lora.models import BayesianLoRA

# Tokens in one forward pass up to which draws are stacked: beyond, stacking buys no speed and costs memory.
_TOKENS_PER_PASS = 2048


def noisy_logits(model: BayesianLoRA, inputs: Inputs, noises: Sequence[list[Tensor]]) -> Tensor:
    """Logits (draw, example, class) of one batch, in one forward pass over the rows repeated for each draw's noise."""
    if len(noises) == 1:
        with model.perturbed(noises[0]):
            return model.network_logits(inputs).unsqueeze(0)
    rows = num_examples(inputs)
    stacked = [torch.stack(groups) for groups in zip(*noises, strict=True)]
    with model.perturbed(stacked, num_rows=len(noises) * rows):
        return model.network_logits(_repeated(inputs, len(noises))).unflatten(0, (len(noises), rows))  # type: ignore[no-any-return]


def keeps_rows_apart(model: BayesianLoRA, inputs: Inputs) -> bool:
    """Whether rows stacked by draw come out as they do alone: tried with a draw of no noise beside one of large noise.

    Not every network has the rows first everywhere: some work time-first, some share a layer with something that has
    no rows at all.
    """
    rows = num_examples(inputs)
    stacked = [torch.stack([noise, torch.ones_like(noise)]) for noise in no_noise(model)]
    try:
        with model.perturbed(stacked, num_rows=2 * rows):
            quiet = model.network_logits(_repeated(inputs, 2))[:rows]
    except Exception:  # whatever a network of this kind says of twice the rows; alone it says what is wrong itself
        return False
    alone = model.network_logits(inputs)
    largest = float(alone.masked_fill(alone == -torch.inf, 0).abs().max())  # which is of options that a row lacks
    return torch.allclose(quiet, alone, rtol=1e-2, atol=1e-2 * largest)


def no_noise(model: BayesianLoRA) -> list[Tensor]:
    """The perturbation of the mean."""
    return [model.sites.example.new_zeros(len(group), group.rank, group.in_features) for group in model.sites.groups]


def _repeated(inputs: Inputs, times: int) -> Inputs:
    """The batch with all of its rows once, then again, and so on."""
    rows = num_examples(inputs)
    return {
        name: value.repeat(times, *(1,) * (value.dim() - 1)) if _has_rows(value, rows) else value
        for name, value in inputs.items()
    }


def num_examples(inputs: Mapping[str, Any]) -> int:
    """Rows of a batch."""
    return int(next(value.shape[0] for value in inputs.values() if isinstance(value, Tensor) and value.dim() > 0))


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def draws_that_fit(inputs: Mapping[str, Any]) -> int:
    """In one pass over this batch, at least one."""
    tokens = next(value.shape[:2].numel() for value in inputs.values() if isinstance(value, Tensor) and value.dim() > 0)
    return max(1, _TOKENS_PER_PASS // max(1, tokens))
