"""Which adapters carry the uncertainty of the predictions: their noise ablated, one part of the network at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics.without_noise import without_noise
from bayes_lora.inference.guides.posterior_draw import Guide
from bayes_lora.inference.predictors.posterior_passes import PosteriorPasses
from bayes_lora.models import BayesianLoRA, Likelihood

_NOTHING = 1e-12  # nats: rounding of the difference of two entropies


@dataclass(frozen=True)
class Uncertainty:
    """Of a set of predictions, means over examples.

    Attributes:
        mutual_information: between a row's label, or all of its labels, and the adapters, nats; see
            `Likelihood.disagreement`.
        variance: over draws, of what the predictive is the mean of, see `Likelihood.averaged`: of the class
            probabilities, summed over classes and words; of numbers, in squares of the predictive's standard deviation.
    """

    mutual_information: float
    variance: float


@dataclass(frozen=True)
class PartUncertainty:
    """What one part of the network contributes.

    Attributes:
        part: its name.
        without: uncertainty that is left when the noise of this part is ablated.
        alone: uncertainty when the noise of all other parts is ablated.
    """

    part: str
    without: Uncertainty
    alone: Uncertainty


@dataclass(frozen=True)
class UncertaintyMap:
    """The uncertainty of the predictions, by part.

    Attributes:
        whole: with all noise.
        parts: in the order asked for.
    """

    whole: Uncertainty
    parts: tuple[PartUncertainty, ...]

    @property
    def falls(self) -> dict[str, float]:
        """Fall of the mutual information when a part is without_noise, as a share of the whole.

        The shares need not sum to 1: parts interact, and noise of one part can mask or amplify that of another. A
        negative one is a part whose noise made the draws agree.
        """
        whole = self.whole.mutual_information
        return {part.part: (1 - part.without.mutual_information / whole) if whole > 0 else 0.0 for part in self.parts}

    @property
    def flagged(self) -> bool:
        """Whether the noise reaches no prediction."""
        return not self.whole.mutual_information > _NOTHING

    @property
    def message(self) -> str:
        """In words."""
        if self.flagged:
            return (
                "The draws agree on every row: the noise reaches no prediction. Either LoRA-B is 0 (train the "
                "adapter), or the sample scale is too small to matter."
            )
        falls = self.falls
        largest = max(falls, key=falls.__getitem__)
        return (
            f"The draws differ by {self.whole.mutual_information:.3g} nats of mutual information on average; {largest} "
            f"carries the most of it: {falls[largest]:.0%} are gone without its noise."
        )


def uncertainty_map(
    model: BayesianLoRA,
    guide: Guide,
    loader: Iterable[Mapping[str, Any]],
    *,
    num_samples: int = 32,
    seed: int = 0,
    parts: Mapping[str, Sequence[str]] | None = None,
    draws_per_pass: int | None = None,
    on_prediction: Callable[[], None] | None = None,
) -> UncertaintyMap:
    """Uncertainty of the predictions with the noise of each part of the network ablated, and with its noise alone.

    Ablated adapters have ``A = mu``; all others have the same independent draws throughout, so the differences between
    the maps' entries are of the noise left out, and of no other. For every part it takes two
    predictions of every row, so ``(2 parts + 1) num_samples`` passes; batches are in the outer loop, so the loader is
    gone through once.

    It can tell which adapters' noise the predictions on these rows depend on, at this sample scale. It cannot tell
    where the model's ignorance comes from: an adapter may carry no variance because its posterior is narrow, because
    LoRA-B is small, or because later layers ignore it; the base weights and the head have no posterior at all. Effects
    of parts do not add up, so read `without` and `alone` together. Small differences between parts are noise of
    `num_samples` draws.

    Args:
        model: the model.
        guide: its guide, or any Pyro callable that samples the model's latent sites. A guide with its own centre, as
            an autoguide's, has to have it in LoRA-A: see `AutoAdapterGuide.copy_median_to_adapters`.
        loader: batches as the network takes them; labels say no more than which tokens count.
        num_samples: draws, at least 2.
        seed: of the draws.
        parts: adapters, as in `model.sites.names`, by the name of a part, for example one for each layer; by default
            every adapter is a part.
        draws_per_pass: see `predict`.
        on_prediction: called after each of the ``2 parts + 1`` predictions of a batch, for progress bars.

    Raises:
        ConfigurationError: no parts, unknown adapters, num_samples below 2, or what `predict` refuses.
        DataError: an empty loader.
        LikelihoodError: a likelihood that does not say how far draws disagree, or a language model's rows without
            labels.

    Source: mutual information as in Houlsby et al., "Bayesian active learning for classification and preference
    learning" (2011), equation 2.

    Example:
        >>> lower = [name for name in model.sites.names if "layer.0." in name]  # doctest: +SKIP
        >>> uncertainty_map(model, guide, loader, parts={"layer 0": lower}).falls  # doctest: +SKIP
        {'layer 0': 0.37}
    """
    if num_samples == 1:
        raise ConfigurationError("num_samples=1 has no spread to divide among parts. Give num_samples=2 or more.")
    chosen = _masks(model, parts)
    ablated = [torch.zeros(len(model.sites.adapters), dtype=torch.bool)]  # the whole, then without and alone of each
    for mask in chosen.values():
        ablated += [mask, ~mask]
    heard = [without_noise(model, guide, mask) if mask.any() else guide for mask in ablated]
    passes = [
        PosteriorPasses(model, partly, num_samples, seed, draws_per_pass, draws="independent") for partly in heard
    ]
    sums, num_rows = torch.zeros(len(ablated), 2, dtype=torch.double), 0
    for batch in loader:
        for index, of_part in enumerate(passes):
            of_part.stacks = passes[0].stacks  # of the network, whatever is ablated
            prediction = of_part.predict([batch])
            of_rows = _of_rows(model.likelihood, prediction)
            sums[index] += of_rows.sum(0)
            if on_prediction is not None:
                on_prediction()
        num_rows += len(of_rows)
    if num_rows == 0:
        raise DataError("there is nothing to predict: the loader has no batches. Pass at least one row.")
    whole, *others = (Uncertainty(*means) for means in (sums / num_rows).tolist())
    pairs = zip(chosen, others[::2], others[1::2], strict=True)
    return UncertaintyMap(whole, tuple(PartUncertainty(*pair) for pair in pairs))


def _of_rows(likelihood: Likelihood, prediction: Any) -> Tensor:
    """Mutual information and variance, (row, 2)."""
    variance = likelihood.averaged(prediction).var(0, correction=0).flatten(1).sum(-1)
    return torch.stack([likelihood.disagreement(prediction), variance], dim=-1)


def _masks(model: BayesianLoRA, parts: Mapping[str, Sequence[str]] | None) -> dict[str, Tensor]:
    """Which adapters belong to each part, (adapter,)."""
    names = model.sites.names
    parts = {name: [name] for name in names} if parts is None else parts
    unknown = sorted({name for members in parts.values() for name in members} - set(names))
    if unknown:
        raise ConfigurationError(
            f"parts names adapters that the model does not have: {', '.join(unknown)}. model.sites.names has: "
            f"{', '.join(names)}."
        )
    empty = [part for part, members in parts.items() if not members]
    if empty or not parts:
        raise ConfigurationError(
            f"parts={dict(parts)!r} leaves nothing to ablate{' in ' + ', '.join(map(repr, empty)) if empty else ''}. "
            "Give every part at least one adapter."
        )
    return {part: torch.tensor([name in members for name in names]) for part, members in parts.items()}
