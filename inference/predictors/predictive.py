"""The posterior predictive: what the network says under many draws of LoRA-A."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
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
    passes = PosteriorPasses(model, guide, num_samples, seed, draws_per_pass)
    return passes.predict(loader, at_mean=at_mean, on_batch=on_batch)


class PosteriorPasses:
    """Forward passes of a model under the same draws of its guide for every batch.

    Args:
        model, guide, num_samples, seed, draws_per_pass: see `predict`, whose errors they have.

    Attributes:
        stacks: whether draws can share a pass; None until it has been tried, on the first batch with room for two.
    """

    def __init__(
        self,
        model: BayesianLoRA,
        guide: Callable[..., Any],
        num_samples: int,
        seed: int,
        draws_per_pass: int | None = None,
    ) -> None:
        require_count("num_samples", num_samples)
        require_seed("seed", seed)
        require_own_guide(model, guide)
        if draws_per_pass is not None:
            require_count("draws_per_pass", draws_per_pass)
        self._model, self._guide, self._seed = model, guide, seed
        self._num_samples, self._draws_per_pass = num_samples, draws_per_pass
        self.stacks: bool | None = None

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        return SharedPrefix.of(self._model) if self._num_samples > 1 else None

    def predict(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        at_mean: bool = False,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        """As `predict`."""
        model = self._model
        with self.predicting():
            logits_of = self.at_mean if at_mean else self.draws
            logits, labels = collect_logits(logits_of, loader, model.sites.example.device, on_batch)
        prediction = model.likelihood.prediction(logits, labels)
        if isinstance(prediction, Prediction) and not at_mean:
            return replace(prediction, kl_temperature=model.config.kl_temperature)
        return prediction  # type: ignore[no-any-return]

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Around all passes: no gradients, evaluation mode, and no effect handler outside sees a site."""
        with torch.no_grad(), evaluation_mode(self._model), poutine.block():
            yield

    def at_mean(self, inputs: Inputs) -> Tensor:
        """Logits (1, example, class) of one batch at ``A = mu``."""
        return self._model.network_logits(inputs).unsqueeze(0)

    def draws(self, inputs: Inputs) -> Tensor:
        """Logits (sample, example, class) of one batch."""
        return self._logits(inputs, list(range(self._num_samples)))

    def mean_and_draws(self, inputs: Inputs) -> Tensor:
        """Logits (1 + sample, example, class) of one batch, those at the mean first, as if they were a draw's."""
        return self._logits(inputs, [None, *range(self._num_samples)])

    def _logits(self, inputs: Inputs, draws: Sequence[int | None]) -> Tensor:
        """Of the draws, None being the mean."""
        chunk = min(len(draws), self._draws_per_pass or _default_draws_per_pass(inputs))
        if self._draws_per_pass is None and chunk > 1:
            if self.stacks is None:
                self.stacks = _keeps_rows_apart(self._model, inputs)
            chunk = chunk if self.stacks else 1
        prefix = self._prefix
        outputs = None if prefix is None else prefix.outputs(lambda: self._model.network_logits(inputs))
        found = []
        for start in range(0, len(draws), chunk):
            part = draws[start : start + chunk]
            with _given(prefix, outputs, _num_examples(inputs), len(part)):
                found.append(_draw_logits(self._model, self._guide, inputs, self._seed, part))
        return torch.cat(found)


def _given(
    prefix: SharedPrefix | None, outputs: list[Any] | None, num_examples: int, times: int
) -> AbstractContextManager[None]:
    """What is the same under every draw is not computed again."""
    return nullcontext() if prefix is None or outputs is None else prefix.giving(outputs, num_examples, times)


def _draw_logits(
    model: BayesianLoRA, guide: Callable[..., Any], inputs: Inputs, seed: int, draws: Sequence[int | None]
) -> Tensor:
    """Logits (draw, example, class) of one batch, in one forward pass over the rows repeated for each draw."""
    noises = [
        _no_noise(model) if draw is None else model.perturbations(posterior_draw(model, guide, seed, draw).latents)
        for draw in draws
    ]
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
    stacked = [torch.stack([noise, torch.ones_like(noise)]) for noise in _no_noise(model)]
    try:
        with model.perturbed(stacked, num_rows=2 * num_examples):
            quiet = model.network_logits(_repeated(inputs, 2))[:num_examples]
    except AdapterError:
        return False
    alone = model.network_logits(inputs)
    return torch.allclose(quiet, alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max()))


def _no_noise(model: BayesianLoRA) -> list[Tensor]:
    """The perturbation of the mean."""
    return [model.sites.example.new_zeros(len(group), group.rank, group.in_features) for group in model.sites.groups]


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
