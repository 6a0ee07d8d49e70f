"""How well scores tell wrong answers from right ones, and questions without an answer from others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_lora.metrics.bootstrap import Statistic, resampled
from bayes_lora.metrics.uncertainty import auroc, batched_auroc

WRONG, NO_ANSWER = "wrong", "unanswerable"
TARGETS: Mapping[str, str] = {WRONG: "wrong answers", NO_ANSWER: "questions without an answer"}
"""What is to be told, and what it is called."""


@dataclass(frozen=True)
class Asked:
    """What one predictor answered to some questions.

    Attributes:
        scores: (question,) by name, larger where it is less sure.
        right: (question,), bool; of questions without an answer nobody looks at it.
        answerable: (question,), bool.
    """

    scores: Mapping[str, Tensor]
    right: Tensor
    answerable: Tensor

    @property
    def wrong(self) -> Tensor:
        """(answerable question,), double: 1 where the answer is wrong."""
        return (~self.right[self.answerable]).double()

    def told(self, target: str, score: str) -> tuple[Tensor, Tensor]:
        """A score of the questions that a target is about, and for which of them it is to be larger."""
        scores = self.scores[score]
        if target == NO_ANSWER:
            return scores, ~self.answerable
        return scores[self.answerable], ~self.right[self.answerable]

    def auroc(self, target: str, score: str) -> float:
        """The share of pairs of which the score tells which is which; NaN where there is no pair."""
        return auroc(*self.told(target, score))

    def resampled(self, target: str, score: str, *, num_resamples: int = 2_000) -> Tensor:
        """That of the questions as they are, and of resamples of them, (1 + resample,): the same resamples for every
        predictor and score. How many questions have no answer stays as it is."""
        told = self.told(target, score)
        strata = told[1].long() if target == NO_ANSWER else None
        return resampled(_statistic(told), len(told[0]), strata=strata, num_resamples=num_resamples)


def targets_of(asked: Sequence[Asked]) -> list[str]:
    """What there is to be told: there are answers of both kinds, and questions of both."""
    wrong = any(0 < float(one.wrong.mean()) < 1 for one in asked if len(one.wrong))
    both = any(one.answerable.any() and not one.answerable.all() for one in asked)
    return [*([WRONG] if wrong else []), *([NO_ANSWER] if both else [])]


def interval(values: Tensor, confidence: float = 0.95) -> tuple[float, float, float]:
    """Of what `Asked.resampled` gave: the value itself, and the ends of its percentile interval."""
    own, others = values[0], values[1:][~values[1:].isnan()]
    if own.isnan() or not len(others):
        return float(own), float("nan"), float("nan")
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.double)
    low, high = others.quantile(ends).tolist()
    return float(own), low, high


def _statistic(told: tuple[Tensor, Tensor]) -> Statistic:
    scores, positive = told
    return lambda rows: batched_auroc(scores, positive, rows)
