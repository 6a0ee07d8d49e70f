"""Forward passes of a network under draws of its posterior, the same for every batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, islice, pairwise
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor

from bayes_lora.checks import require_count, require_positive, require_seed
from bayes_lora.choices import Draws
from bayes_lora.inference.guides.draw_design import block_size, design_of, designed_noises
from bayes_lora.inference.guides.posterior_draw import require_own_guide
from bayes_lora.inference.predictors.predictor import (
    Inputs,
    collect_logits,
    evaluation_mode,
    in_full_precision,
    joined_batches,
)
from bayes_lora.inference.predictors.shared_prefix import SharedPrefix
from bayes_lora.inference.predictors.stacked_draws import (
    draws_that_fit,
    keeps_rows_apart,
    no_noise,
    noisy_logits,
    num_examples,
)
from bayes_lora.metrics.drawn_prediction import DrawnPrediction
from bayes_lora.metrics.monte_carlo_error import error_of_mean
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.likelihoods.likelihood import Reduction

# Draws after which "auto" looks whether they are enough; it stops at the last, enough or not.
_STAGES = (2, 4, 8, 16, 32, 64)


class PosteriorPasses:
    """Forward passes of a model under the same draws of its guide for every batch.

    Args:
        model, guide, num_samples, seed, draws_per_pass, draws, tolerance: see `predict`, whose errors they have.

    Attributes:
        block_size: draws that belong together by design.
        stacks: whether draws can share a pass; None until it has been tried, on the first batch with room for two.
    """

    def __init__(
        self,
        model: BayesianLoRA,
        guide: Callable[..., Any],
        num_samples: int | Literal["auto"],
        seed: int,
        draws_per_pass: int | None = None,
        *,
        draws: Draws | None = None,
        tolerance: float = 0.005,
    ) -> None:
        if num_samples != "auto":
            require_count("num_samples", num_samples)
        require_positive("tolerance", tolerance)
        require_seed("seed", seed)
        require_own_guide(model, guide)
        if draws_per_pass is not None:
            require_count("draws_per_pass", draws_per_pass)
        self._model, self._guide, self._seed = model, guide, seed
        self._num_samples, self._draws_per_pass, self._tolerance = num_samples, draws_per_pass, tolerance
        self._draws = design_of(guide, draws, num_samples)
        self.block_size = block_size(self._draws)
        self.stacks: bool | None = None

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        shares = self._num_samples != 1 and self._model.likelihood.one_pass
        return SharedPrefix.of(self._model) if shares else None

    def predict(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        at_mean: bool = False,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        """As `predict`."""
        model = self._model
        counts: list[Tensor] = []
        means: list[Tensor] = []

        def enough(inputs: Inputs) -> Tensor:
            logits = self.mean_and_draws(inputs)
            counts.append(torch.full(logits.shape[1:2], len(logits) - 1))
            means.append(self._at_mean_of(logits))
            return logits[1:]

        if model.likelihood.reduces:
            predict = partial(self._reduced, at_mean=at_mean)
            with self.predicting():
                return joined_batches(predict, model.likelihood, loader, model.sites.example.device, on_batch)  # type: ignore[no-any-return]
        logits_of = self.at_mean if at_mean else enough if self._num_samples == "auto" else self.draws
        with self.predicting():
            logits, labels = collect_logits(logits_of, loader, model.sites.example.device, on_batch)
        prediction = model.likelihood.prediction(logits, labels)
        if not isinstance(prediction, Prediction | DrawnPrediction) or at_mean:
            return prediction  # type: ignore[no-any-return]
        num_draws = torch.cat(counts) if counts else None
        joint = num_draws is None or bool((num_draws == num_draws[0]).all())
        of_draws: dict[str, Any] = {"kl_temperature": model.config.kl_temperature, "block_size": self.block_size}
        found: Any = replace(prediction, joint=joint, **of_draws)
        if num_draws is None or not isinstance(prediction, Prediction):
            return found  # type: ignore[no-any-return]
        return replace(found, num_draws=num_draws, at_mean=torch.cat(means))  # type: ignore[no-any-return]

    def _reduced(self, inputs: Inputs, labels: Tensor | None, *, at_mean: bool) -> Any:
        """What a likelihood that reduces its passes predicts of one batch."""
        if self._num_samples == "auto" and not at_mean:
            return self.mean_and_predictive(inputs, labels)[1]
        reduction = self._model.likelihood.reduction(self._model.network, inputs, labels)
        self._add(reduction, [None] if at_mean else range(self._stages[0]))
        return reduction.prediction()

    def mean_and_predictive(self, inputs: Inputs, labels: Tensor | None) -> tuple[Any, Any]:
        """What a likelihood that reduces its passes predicts of one batch at ``A = mu``, and under the draws."""
        model, stages = self._model, self._stages
        mean, predictive = (model.likelihood.reduction(model.network, inputs, labels) for _ in range(2))
        passes = self._passes(dict(mean.inputs), [None, *range(stages[0])], mean.draws_per_pass)
        for index, logits in enumerate(passes):
            if index == 0:
                mean.add(logits[:1])
            predictive.add(logits[1:] if index == 0 else logits)
        at_mean, averaged = mean.prediction(), model.likelihood.averaged
        for drawn, more in pairwise(stages):
            if self._are_enough(averaged(predictive.prediction()), averaged(at_mean)[0]):
                break
            self._add(predictive, range(drawn, more))
        return at_mean, predictive.prediction()

    def averaged(self, inputs: Inputs, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the predictive is the mean of, see `Likelihood.averaged`, of one batch: at ``A = mu``, (example, ...),
        and under the draws, (sample, example, ...)."""
        likelihood = self._model.likelihood
        if likelihood.reduces:
            mean, predictive = (likelihood.averaged(of) for of in self.mean_and_predictive(inputs, labels))
            return mean[0], predictive
        logits = in_full_precision(self.mean_and_draws(inputs))
        found = likelihood.averaged(likelihood.prediction(logits, None if labels is None else labels.cpu()))
        return found[0], found[1:]

    def _add(self, reduction: Reduction, draws: Sequence[int | None]) -> None:
        for logits in self._passes(dict(reduction.inputs), draws, reduction.draws_per_pass):
            reduction.add(logits)

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
        if self._num_samples == "auto":
            return self.mean_and_draws(inputs)[1:]
        return self._logits(inputs, range(self._num_samples))

    def mean_and_draws(self, inputs: Inputs) -> Tensor:
        """Logits (1 + sample, example, class) of one batch, those at the mean first, as if they were a draw's."""
        likelihood, stages = self._model.likelihood, self._stages
        logits = self._logits(inputs, [None, *range(stages[0])])
        for drawn, more in pairwise(stages):
            averaged = likelihood.averaged(likelihood.prediction(in_full_precision(logits), None))
            if self._are_enough(averaged[1:], averaged[0]):
                break
            logits = torch.cat([logits, self._logits(inputs, range(drawn, more))])
        return logits

    @property
    def _stages(self) -> Sequence[int]:
        """Numbers of draws after which it is looked whether they are enough; the last is."""
        if self._num_samples != "auto":
            return (self._num_samples,)
        return [stage for stage in _STAGES if stage >= self.block_size]

    def _are_enough(self, of_draws: Tensor, at_mean: Tensor) -> bool:
        """Whether the mean over draws is known as well as the tolerance asks for."""
        return bool((error_of_mean(of_draws, self.block_size, at_mean) <= self._tolerance).all())

    def _at_mean_of(self, logits: Tensor) -> Tensor:
        """What a prediction says at the mean, (example, class), the first of the logits."""
        return self._model.likelihood.prediction(in_full_precision(logits[:1]), None).logits[0]  # type: ignore[no-any-return]

    def _logits(self, inputs: Inputs, draws: Sequence[int | None]) -> Tensor:
        """Of the draws; None is the mean, and can only be the first."""
        return torch.cat(list(self._passes(inputs, draws)))

    def _passes(self, inputs: Inputs, draws: Sequence[int | None], most: int | None = None) -> Iterator[Tensor]:
        """Logits (draw, example, ...) of one pass after the other, each of at most `most` draws."""
        chunk = min(len(draws), self._draws_per_pass or min(draws_that_fit(inputs), most or len(draws)))
        if self._draws_per_pass is None and chunk > 1:
            if self.stacks is None:
                self.stacks = keeps_rows_apart(self._model, inputs)
            chunk = chunk if self.stacks else 1
        prefix, outputs = self._prefix, None
        if prefix is not None:  # what is the same under every draw is not computed again
            outputs = prefix.outputs(lambda: self._model.network_logits(inputs))
        of_draws = (draw for draw in draws if draw is not None)
        noises = designed_noises(self._model, self._guide, self._draws, self._seed, of_draws)
        if draws[0] is None:
            noises = chain([no_noise(self._model)], noises)
        for start in range(0, len(draws), chunk):
            part = list(islice(noises, min(chunk, len(draws) - start)))
            given: AbstractContextManager[None] = nullcontext()
            if prefix is not None and outputs is not None:
                given = prefix.giving(outputs, num_examples(inputs), len(part))
            with given:
                logits = noisy_logits(self._model, inputs, part)
            yield logits
