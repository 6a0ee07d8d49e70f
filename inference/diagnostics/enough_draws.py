"""How many draws the predictive takes, and whether it takes any."""

from dataclasses import dataclass

import torch

from bayes_lora.errors import ConfigurationError
from bayes_lora.metrics.monte_carlo_error import monte_carlo_error
from bayes_lora.metrics.prediction import Prediction


@dataclass(frozen=True)
class EnoughDraws:
    """How far the posterior predictive is from the network at the mean, and its draws from enough.

    Attributes:
        mean_within: the largest difference of a probability at the mean from the predictive's.
        mean_differs: the root of the mean square of these differences, over rows and classes.
        standard_error: the largest, over the choice of draws, of a probability of the predictive.
        num_draws: the least and the most that a row was predicted with.
        tolerance: for the standard error.
    """

    mean_within: float
    mean_differs: float
    standard_error: float
    num_draws: tuple[int, int]
    tolerance: float

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
            f"The mean alone is within {self.mean_within:.2g} of the predictive in every probability, and "
            f"{self.mean_differs:.2g} off as a rule; {drawn} {verdict}."
        )


def enough_draws(prediction: Prediction, tolerance: float = 0.005) -> EnoughDraws:
    """What `predict(..., num_samples="auto")` has found out about the number of draws.

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
