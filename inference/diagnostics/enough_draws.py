"""How many draws the predictive takes, and whether it takes any."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.predictors.posterior_passes import PosteriorPasses
from bayes_lora.inference.predictors.predictor import labelled_inputs
from bayes_lora.metrics.monte_carlo_error import error_of_mean, monte_carlo_error
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import BayesianLoRA


@dataclass(frozen=True)
class EnoughDraws:
    """How far the posterior predictive is from the network at the mean, and its draws from enough.

    Attributes:
        mean_within: the largest difference of a probability at the mean from the predictive's; of numbers, of a mean in
            standard deviations of the predictive.
        mean_differs: the root of the mean square of these differences, over rows and classes.
        standard_error: the largest, over the choice of draws, of what the predictive says.
        num_draws: the least and the most that a row was predicted with.
        tolerance: for the standard error.
        of: what draws are averaged for, in a sentence, see `Likelihood.averaged`.
    """

    mean_within: float
    mean_differs: float
    standard_error: float
    num_draws: tuple[int, int]
    tolerance: float
    of: str = "probability"

    @property
    def flagged(self) -> bool:
        """Whether the draws were not enough."""
        return not self.standard_error <= self.tolerance

    @property
    def message(self) -> str:
        """In words."""
        least, most = self.num_draws
        drawn = f"{most} draws" if least == most else f"{least} to {most} draws, by batch,"
        verdict = (
            f"leave it uncertain by {self.standard_error:.2g}, more than {self.tolerance:g}: take more, or look at so "
            "wide a posterior"
            if self.flagged
            else f"give it to within a standard error of {self.standard_error:.2g}"
        )
        return (
            f"The mean alone is within {self.mean_within:.2g} of the predictive in every {self.of} and "
            f"{self.mean_differs:.2g} off as a rule; {drawn} {verdict}."
        )


def enough_draws(prediction: Prediction, tolerance: float = 0.005) -> EnoughDraws:
    """What `predict(..., num_samples="auto")` of classes has found out about the number of draws; see `draws_needed`.

    It can tell whether draws change the probabilities of these rows, and how many of them are needed for that. It
    cannot tell whether the change is for the better, which labels say; nor what draws do to the mutual information,
    which at the mean is 0.

    Args:
        prediction: of `predict` with num_samples="auto".
        tolerance: the same as there.

    Raises:
        ConfigurationError: a prediction that does not know the network at the mean.

    Example:
        >>> enough_draws(predict(model, guide, loader, num_samples="auto")).message  # doctest: +SKIP
        'The mean alone is within 0.012 of the predictive in every probability, ...'
    """
    if prediction.at_mean is None:
        raise ConfigurationError(
            "the prediction does not know what the network says at the mean. Predict with num_samples='auto'."
        )
    difference = (prediction.at_mean.double().softmax(-1) - prediction.mean_probs).abs()
    counts = prediction.num_draws
    if counts is None:
        counts = torch.tensor([len(prediction.logits)])
    return EnoughDraws(
        difference.max().item(),
        difference.square().mean().sqrt().item(),
        monte_carlo_error(prediction).mean_probs.max().item(),
        (int(counts.min()), int(counts.max())),
        tolerance,
    )


def draws_needed(
    model: BayesianLoRA,
    guide: Callable[..., Any],
    loader: Iterable[Mapping[str, Any]],
    *,
    draws: Draws | None = None,
    tolerance: float = 0.005,
    seed: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> EnoughDraws:
    """How many draws the predictive of these rows takes, of every kind of label, and how far the mean alone is from it.

    It draws as ``predict(..., num_samples="auto")`` does; of classes, `enough_draws` says the same of its prediction.
    What it can tell and what it cannot is said there.

    Args:
        model, guide, loader, draws, tolerance, seed, on_batch: see `predict`; a language model needs labels.

    Raises:
        ConfigurationError: what `predict` refuses.
        DataError: an empty loader, or labels in some batches only.
        LikelihoodError: a likelihood that does not say what draws are averaged for.

    Example:
        >>> draws_needed(model, guide, loader).num_draws  # doctest: +SKIP
        (2, 4)
    """
    passes = PosteriorPasses(model, guide, "auto", seed, draws=draws, tolerance=tolerance)
    differences: list[Tensor] = []
    errors: list[Tensor] = []
    counts: list[int] = []
    with passes.predicting():
        for inputs, labels in labelled_inputs(loader, model.sites.example.device):
            at_mean, drawn = passes.averaged(inputs, labels)
            # Padding, and tokens without a label, are the same under every draw: they are no part of any prediction.
            differs = (drawn != at_mean).any(0)
            differences.append((drawn.mean(0) - at_mean)[differs].abs())
            errors.append(error_of_mean(drawn, passes.block_size, at_mean)[differs])
            counts.append(len(drawn))
            if on_batch is not None:
                on_batch()
    difference, error = torch.cat(differences), torch.cat(errors)
    if not len(difference):  # no draw changes anything
        return EnoughDraws(0.0, 0.0, 0.0, (min(counts), max(counts)), tolerance, model.likelihood.averaged_called)
    return EnoughDraws(
        difference.max().item(),
        difference.square().mean().sqrt().item(),
        error.max().item(),
        (min(counts), max(counts)),
        tolerance,
        model.likelihood.averaged_called,
    )
