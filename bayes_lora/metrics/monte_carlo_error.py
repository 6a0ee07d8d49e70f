"""How far predictions from finitely many draws are from those of infinitely many."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_lora.metrics.bootstrap import standard_error
from bayes_lora.metrics.prediction import Prediction

# Of a z^2, z ~ N(0, 1): its standard deviation is sqrt(2) times its mean a.
_OF_ONE_SQUARE = math.sqrt(2)


@dataclass(frozen=True)
class MonteCarloError:
    """Standard errors, over the choice of draws, of what a `Prediction` says of each row.

    NaN where the draws do not tell: a single one, or a single block without the logits at the mean.

    Attributes:
        mean_probs: (example, class).
        total_entropy, aleatoric_entropy, mutual_information: (example,), nats.
    """

    mean_probs: Tensor
    total_entropy: Tensor
    aleatoric_entropy: Tensor
    mutual_information: Tensor


def monte_carlo_error(prediction: Prediction) -> MonteCarloError:
    """The standard error of each row's mean probabilities, entropies and mutual information.

    Only what is independent counts: S draws, or S / B blocks of B. For a mean it is the deviation (n - 1) of these by
    the root of their number n. An entropy is a function of a mean and is taken as linear near it, H[E p] as the mean of
    ``-sum_c p_c ln E p_c`` (the infinitesimal jackknife).

    A single block has no deviation. There the error is sqrt(2) times the distance from what the network says at the
    mean, where `Prediction.at_mean` knows it: a pair's mean is off by what is even in the noise, and that is as
    uncertain as it is large if the noise has one direction, ``a z^2`` with z ~ N(0, 1), and less so if it has many. Of
    a block of four the same is said: it has three such terms, but also some of what is odd and not linear.

    Variances from few blocks are uncertain themselves: from two, wrong by a factor of 2 as often as not.

    Source: Owen 2013, Monte Carlo theory, methods and examples, section 8.2, for pairs.

    Example:
        >>> monte_carlo_error(predict(model, guide, loader)).mean_probs.max()  # doctest: +SKIP
    """
    probs, log_mean = prediction.probs, prediction.log_mean_probs
    if prediction.at_mean is not None:  # the last sample from here on
        probs = torch.cat([probs, prediction.at_mean.double().softmax(-1).unsqueeze(0)])
    total, aleatoric = -(probs * log_mean).sum(-1), torch.special.entr(probs).sum(-1)
    return MonteCarloError(*(_error(prediction, of) for of in (probs, total, aleatoric, total - aleatoric)))


def independent_parts(values: Tensor, block_size: int) -> Tensor:
    """Of values under draws (sample, ...) those that are independent: themselves, or the means of whole blocks."""
    if block_size == 1:
        return values
    whole = len(values) // block_size
    return values[: whole * block_size].reshape(whole, block_size, *values.shape[1:]).mean(1)


def _error(prediction: Prediction, values: Tensor) -> Tensor:
    """Of the mean over draws of values (sample, example, ...), the last of them that at the mean, where it is known."""
    num_samples, num_examples = prediction.logits.shape[:2]
    counts = prediction.num_draws
    counts = torch.full((num_examples,), num_samples) if counts is None else counts
    found = torch.full_like(values[0], math.nan)
    for count in counts.unique().tolist():
        rows = counts == count
        parts = independent_parts(values[:count, rows], prediction.block_size)
        if len(parts) > 1:
            found[rows] = standard_error(parts)
        elif prediction.block_size > 1 and len(parts) == 1 and len(values) > num_samples:
            found[rows] = _from_the_mean(parts[0], values[-1, rows])
    return found


def error_of_mean(values: Tensor, block_size: int, at_mean: Tensor) -> Tensor:
    """The standard error of the mean of values under draws, (sample, ...), see `monte_carlo_error`.

    Args:
        values: (sample, ...).
        block_size: draws that belong together by design.
        at_mean: the value at the mean of the adapters, (...).
    """
    parts = independent_parts(values, block_size)
    if len(parts) > 1:
        return standard_error(parts)
    return _from_the_mean(parts[0], at_mean) if block_size > 1 else torch.full_like(at_mean, math.nan)


def _from_the_mean(block: Tensor, at_mean: Tensor) -> Tensor:
    """The error of a single block."""
    return _OF_ONE_SQUARE * (block - at_mean).abs()
