"""Class probabilities under several draws, and what they say about certainty."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of every example under every draw.

    Attributes:
        logits: (sample, example, class), float32 or better, on the CPU.
        labels: (example,) where the rows had labels, else None.
        kl_temperature: T where the draws are of a posterior proportional to p(z) prod_i p(y_i | z)^(1 / T): 1 is Bayes'
            rule. None where they are of no such density (objective "paper", dropout, an ensemble), or nobody said.
            Leaving rows out of a posterior takes it: see `loo_pit`.
        joint: whether a sample is one network's logits of all rows. Where each row has draws of its own (dropout
            masks, Laplace's "monte_carlo"), or a number of draws of its own, rows vary together less than they should:
            see `check_accuracy`.
        block_size: so many samples, one after the other, belong together by design, and only such blocks are
            independent: 2 of antithetic pairs. Means over samples are right as ever; what takes samples for
            independent has to take blocks, see `monte_carlo_error`.
        num_draws: how many draws each row was predicted with, (example,), where rows differ in that: the samples of a
            row with fewer are these again and again, so that means over samples are means over its draws. None: all.
        at_mean: logits of the network at the mean of its adapters, (example, class), where they were asked for.
        foreignness: how far each row is from those of training by a score of the method's own, (example,), double
            precision, larger for rows from elsewhere; None where probabilities are to say it.
    """

    logits: Tensor
    labels: Tensor | None = None
    kl_temperature: float | None = None
    joint: bool = True
    block_size: int = 1
    num_draws: Tensor | None = None
    at_mean: Tensor | None = None
    foreignness: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor | None) -> Self:
        """From the labels as batches have them, in any shape with one for each example."""
        return cls(logits, None if labels is None else labels.reshape(-1))

    @cached_property
    def probs(self) -> Tensor:
        """(sample, example, class), in double precision: where draws nearly agree, the mutual information is the small
        difference of two entropies."""
        return self.logits.double().softmax(-1)

    @cached_property
    def mean_probs(self) -> Tensor:
        """The posterior predictive (example, class): the mean over draws."""
        return self.probs.mean(0)

    @property
    def log_mean_probs(self) -> Tensor:
        """Logarithm of `mean_probs`, finite also where a probability would underflow to 0."""
        return self.logits.double().log_softmax(-1).logsumexp(0) - math.log(len(self.logits))

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

    def drawn(self, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Labels of every example under one draw, (count, example)."""
        return torch.multinomial(self.probs[draw], count, replacement=True, generator=generator).T


def rescaled_classes(prediction: Prediction, temperature: float) -> Prediction:
    """``q(y) proportional to p(y)^(1 / T)`` of mean probabilities p: one sample, labels and foreignness as before."""
    scaled = (prediction.log_mean_probs / temperature).log_softmax(-1)
    return Prediction(scaled.unsqueeze(0), prediction.labels, foreignness=prediction.foreignness)


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)  # type: ignore[no-any-return]
