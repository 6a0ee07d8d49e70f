"""The posterior predictive: what the network says under many draws of LoRA-A."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from bayes_lora.checks import require_count
from bayes_lora.errors import DataError
from bayes_lora.inference.randomness import seeded, stream
from bayes_lora.models import BayesianLoRA

# Tokens in one forward pass up to which draws are stacked: beyond, stacking buys no speed and costs memory.
_TOKENS_PER_PASS = 2048


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of every example under every draw.

    Attributes:
        logits: (sample, example, class), float32 or better, on the CPU.
        labels: (example,) where the rows had labels, else None.
    """

    logits: Tensor
    labels: Tensor | None = None

    @cached_property
    def probs(self) -> Tensor:
        """(sample, example, class)."""
        return self.logits.softmax(-1)

    @cached_property
    def mean_probs(self) -> Tensor:
        """The posterior predictive (example, class): the mean over draws."""
        return self.probs.mean(0)

    @cached_property
    def total_entropy(self) -> Tensor:
        """Entropy of the posterior predictive, H[E p], (example,), nats."""
        return _entropy(self.mean_probs)

    @cached_property
    def aleatoric_entropy(self) -> Tensor:
        """Mean entropy over draws, E H[p], (example,), nats: what more data would not take away."""
        return _entropy(self.probs).mean(0)

    @cached_property
    def mutual_information(self) -> Tensor:
        """Between label and adapters, H[E p] - E H[p] >= 0, (example,), nats: how far the draws disagree."""
        return (self.total_entropy - self.aleatoric_entropy).clamp_min(0)


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
    are left as they were, and so is the training mode.

    Args:
        model: the model.
        guide: its guide, or any Pyro callable that samples the model's latent sites.
        loader: batches as the network takes them; `labels` are kept where present and not shown to the network.
        num_samples: S, draws from the posterior.
        seed: of the draws.
        at_mean: predict once with ``A = mu``, the plain PEFT model, instead; the sample dimension is then 1.
        draws_per_pass: draws that share one forward pass; by default as many as fit a fixed number of tokens.
        on_batch: called after each batch, for progress bars.

    Raises:
        ConfigurationError: num_samples or draws_per_pass below 1.
        DataError: an empty loader, or labels in some batches only.

    Example:
        >>> prediction = predict(model, guide, loader, num_samples=32, seed=0)  # doctest: +SKIP
        >>> prediction.mean_probs.argmax(-1)  # doctest: +SKIP
    """
    require_count("num_samples", num_samples)
    if draws_per_pass is not None:
        require_count("draws_per_pass", draws_per_pass)
    device = model.sites.example.device
    logits, labels, num_batches = [], [], 0
    with torch.no_grad(), _evaluation_mode(model), poutine.block():
        for batch in loader:
            inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            found = inputs.pop("labels", None)
            if found is not None:
                labels.append(found.reshape(-1).cpu())
            if at_mean:
                drawn = model.network_logits(inputs).unsqueeze(0)
            else:
                chunk = draws_per_pass or _default_draws_per_pass(inputs)
                starts = range(0, num_samples, chunk)
                parts = [
                    _draw_logits(model, guide, inputs, seed, range(start, min(start + chunk, num_samples)))
                    for start in starts
                ]
                drawn = torch.cat(parts)
            logits.append(drawn.to(torch.promote_types(drawn.dtype, torch.float32)).cpu())
            num_batches += 1
            if on_batch is not None:
                on_batch()
    if not logits:
        raise DataError("there is nothing to predict: the loader has no batches. Pass at least one row.")
    if labels and len(labels) != num_batches:
        raise DataError("some batches have labels and some do not. Label all rows, or none.")
    return Prediction(torch.cat(logits, dim=1), torch.cat(labels) if labels else None)


def _draw_logits(
    model: BayesianLoRA, guide: Callable[..., Any], inputs: dict[str, Any], seed: int, draws: range
) -> Tensor:
    """Logits (draw, example, class) of one batch, in one forward pass over the rows repeated for each draw."""
    noises = [_draw_perturbation(model, guide, stream(seed, draw)) for draw in draws]
    if len(noises) == 1:
        with model.perturbed(noises[0]):
            return model.network_logits(inputs).unsqueeze(0)
    num_examples = _num_examples(inputs)
    repeated = {
        name: value.repeat(len(draws), *(1,) * (value.dim() - 1)) if _has_rows(value, num_examples) else value
        for name, value in inputs.items()
    }
    stacked = [torch.stack(groups) for groups in zip(*noises, strict=True)]
    with model.perturbed(stacked, num_rows=len(draws) * num_examples):
        return model.network_logits(repeated).unflatten(0, (len(draws), num_examples))  # type: ignore[no-any-return]


def _draw_perturbation(model: BayesianLoRA, guide: Callable[..., Any], seed: int) -> list[Tensor]:
    with seeded(seed, model.sites.example.device):
        drawn = prune_subsample_sites(poutine.trace(guide).get_trace())
        # Conditioning, not replay: a guide that was itself conditioned has observed sites, which replay refuses.
        values = {name: drawn.nodes[name]["value"] for name in (*drawn.stochastic_nodes, *drawn.observation_nodes)}
        return model.perturbations(poutine.condition(model.sample_latents, data=values)())


def _num_examples(inputs: Mapping[str, Any]) -> int:
    return int(next(value.shape[0] for value in inputs.values() if isinstance(value, Tensor) and value.dim() > 0))


def _has_rows(value: Any, num_examples: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == num_examples


def _default_draws_per_pass(inputs: Mapping[str, Any]) -> int:
    tokens = next(value.shape[:2].numel() for value in inputs.values() if isinstance(value, Tensor) and value.dim() > 0)
    return max(1, _TOKENS_PER_PASS // tokens)


@contextmanager
def _evaluation_mode(model: BayesianLoRA) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)  # type: ignore[no-any-return]
