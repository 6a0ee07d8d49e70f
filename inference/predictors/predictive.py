"""The posterior predictive: what the network says under many draws of LoRA-A."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import AdapterError
from bayes_lora.inference.guides.posterior_draw import posterior_draw, require_own_guide
from bayes_lora.inference.predictors.predictor import Inputs, collect_logits, evaluation_mode
from bayes_lora.inference.predictors.shared_prefix import SharedPrefix
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import BayesianLoRA

# Tokens in one forward pass up to which draws are stacked: beyond, stacking buys no speed and costs memory.
_TOKENS_PER_PASS = 2048


def predict(
    model: BayesianLoRA,
    guide: Callable[..., Any],
    loader: Iterable[Mapping[str, Any]],
    *,
    num_samples: int = 32,
    seed: int = 0,
    at_mean: bool = False,
    draws_per_pass: int | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Prediction:
    """Predict under `num_samples` draws of the guide, the same draws for every batch.

    Draw s depends on (seed, s) only: not on the batches, and 16 draws are the first 16 of 32. The global generators
    are left as they were, and so is the training mode. Where only the upper blocks of a network have adapters, those
    below run once a batch, not once a draw.

    Args:
        model: the model.
        guide: its guide, or any Pyro callable that samples the model's latent sites.
        loader: batches as the network takes them; `labels` are kept where present and not shown to the network.
        num_samples: S, draws from the posterior.
        seed: of the draws.
        at_mean: predict once with ``A = mu``, the plain PEFT model, instead; the sample dimension is then 1.
        draws_per_pass: draws that share one forward pass; by default as many as fit a fixed number of tokens, or 1
            where a trial on the first batch that has room for two shows that the network mixes rows.
        on_batch: called after each batch, for progress bars.

    Raises:
        ConfigurationError: num_samples or draws_per_pass below 1, a seed out of range, a guide of another model.
        AdapterError: draws_per_pass > 1 was asked for, but the network reorders rows.
        DataError: an empty loader, or labels in some batches only.

    Example:
        >>> prediction = predict(model, guide, loader, num_samples=32, seed=0)  # doctest: +SKIP
        >>> prediction.mean_probs.argmax(-1)  # doctest: +SKIP
    """
    require_count("num_samples", num_samples)
    require_seed("seed", seed)
    require_own_guide(model, guide)
    if draws_per_pass is not None:
        require_count("draws_per_pass", draws_per_pass)
    stacks: bool | None = None
    prefix = None if at_mean or num_samples == 1 else SharedPrefix.of(model)

    def draws(inputs: Inputs) -> Tensor:
        nonlocal stacks
        if at_mean:
            return model.network_logits(inputs).unsqueeze(0)
        chunk = min(num_samples, draws_per_pass or _default_draws_per_pass(inputs))
        if draws_per_pass is None and chunk > 1:
            if stacks is None:
                stacks = _keeps_rows_apart(model, inputs)
            chunk = chunk if stacks else 1
        starts = range(0, num_samples, chunk)
        parts = [range(start, min(start + chunk, num_samples)) for start in starts]
        outputs = None if prefix is None else prefix.outputs(lambda: model.network_logits(inputs))
        found = []
        for part in parts:
            with _given(prefix, outputs, _num_examples(inputs), len(part)):
                found.append(_draw_logits(model, guide, inputs, seed, part))
        return torch.cat(found)

    with evaluation_mode(model), poutine.block():
        logits, labels = collect_logits(draws, loader, model.sites.example.device, on_batch)
    return model.likelihood.prediction(logits, labels)  # type: ignore[no-any-return]


def _given(
    prefix: SharedPrefix | None, outputs: list[Any] | None, num_examples: int, times: int
) -> AbstractContextManager[None]:
    """What is the same under every draw is not computed again."""
    return nullcontext() if prefix is None or outputs is None else prefix.giving(outputs, num_examples, times)


def _draw_logits(model: BayesianLoRA, guide: Callable[..., Any], inputs: Inputs, seed: int, draws: range) -> Tensor:
    """Logits (draw, example, class) of one batch, in one forward pass over the rows repeated for each draw."""
    noises = [model.perturbations(posterior_draw(model, guide, seed, draw).latents) for draw in draws]
    if len(noises) == 1:
        with model.perturbed(noises[0]):
            return model.network_logits(inputs).unsqueeze(0)
    num_examples = _num_examples(inputs)
    stacked = [torch.stack(groups) for groups in zip(*noises, strict=True)]
    with model.perturbed(stacked, num_rows=len(draws) * num_examples):
        return model.network_logits(_repeated(inputs, len(draws))).unflatten(0, (len(draws), num_examples))  # type: ignore[no-any-return]


def _keeps_rows_apart(model: BayesianLoRA, inputs: Inputs) -> bool:
    """Whether rows stacked by draw come out as they do alone: tried with a draw of no noise beside one of large noise.

    Not every network has the rows first everywhere: some work time-first, some share a layer with something that has
    no rows at all.
    """
    num_examples = _num_examples(inputs)
    groups = model.sites.groups
    none = [model.sites.example.new_zeros(len(group), group.rank, group.in_features) for group in groups]
    stacked = [torch.stack([noise, torch.ones_like(noise)]) for noise in none]
    try:
        with model.perturbed(stacked, num_rows=2 * num_examples):
            quiet = model.network_logits(_repeated(inputs, 2))[:num_examples]
    except AdapterError:
        return False
    alone = model.network_logits(inputs)
    return torch.allclose(quiet, alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max()))


def _repeated(inputs: Inputs, times: int) -> Inputs:
    """The batch with all of its rows once, then again, and so on."""
    num_examples = _num_examples(inputs)
    return {
        name: value.repeat(times, *(1,) * (value.dim() - 1)) if _has_rows(value, num_examples) else value
        for name, value in inputs.items()
    }


def _num_examples(inputs: Mapping[str, Any]) -> int:
    return int(next(value.shape[0] for value in inputs.values() if isinstance(value, Tensor) and value.dim() > 0))


def _has_rows(value: Any, num_examples: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == num_examples


def _default_draws_per_pass(inputs: Mapping[str, Any]) -> int:
    tokens = next(value.shape[:2].numel() for value in inputs.values() if isinstance(value, Tensor) and value.dim() > 0)
    return max(1, _TOKENS_PER_PASS // max(1, tokens))
