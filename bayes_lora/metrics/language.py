"""Tokens of a text under several draws: how likely each is, what is not known, and how good that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayes_lora.errors import DataError
from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.labels import known_labels


@dataclass(frozen=True)
class LanguagePrediction:
    """What every token of a row was predicted to be from those before it, reduced to what is asked of it.

    Probabilities of the whole vocabulary under every draw are not kept: they would be vocabulary times as much.

    Attributes:
        log_probs: (sample, row, token), ln p(y_t | y_<t, draw) of the tokens that are labels, nats; None where there
            are no labels.
        total_entropy: (row, token), H[E p] of the distribution that token t was predicted with, nats.
        aleatoric_entropy: (row, token), E H[p] of it, nats.
        scored: (row, token), which tokens these are of: those with a label, or where there are no labels all but the
            first of a row. Elsewhere there are zeros.
        labels: (row, token), -100 where a token has none.
    """

    log_probs: Tensor | None
    total_entropy: Tensor
    aleatoric_entropy: Tensor
    scored: Tensor
    labels: Tensor | None

    @classmethod
    def joined(cls, parts: Sequence["LanguagePrediction"]) -> "LanguagePrediction":
        """The rows of all parts, as wide as the widest.

        A part with fewer draws than others has them again and again, so that a mean over draws stays what it is; the
        most have to be a multiple of its number.
        """
        width = max(part.scored.shape[-1] for part in parts)
        known = [part.log_probs for part in parts if part.log_probs is not None]
        most = max(map(len, known), default=0)
        parts = [
            part
            if part.log_probs is None
            else replace(part, log_probs=part.log_probs.repeat(most // len(part.log_probs), 1, 1))
            for part in parts
        ]

        def rows(name: str, value: float = 0) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            if any(of is None for of in values):
                return None
            return torch.cat([pad(of, (0, width - of.shape[-1]), value=value) for of in values], dim=-2)

        found = {name: rows(name) for name in ("log_probs", "total_entropy", "aleatoric_entropy", "scored")}
        return cls(**found, labels=rows("labels", UNLABELLED))  # type: ignore[arg-type]

    @cached_property
    def mutual_information(self) -> Tensor:
        """Of each token and the draw, (row, token), nats: how far the draws disagree on it."""
        return self.total_entropy - self.aleatoric_entropy

    @cached_property
    def num_tokens(self) -> Tensor:
        """Scored tokens of each row, (row,)."""
        return self.scored.sum(-1)

    @cached_property
    def token_log_probs(self) -> Tensor:
        """ln 1/S sum_s p(y_t | y_<t, s), (row, token), nats: of each token for itself, as decoding meets it.

        Raises:
            DataError: the rows have no labels.
        """
        return self._known.logsumexp(0) - math.log(len(self._known))

    @cached_property
    def log_density(self) -> Tensor:
        """ln 1/S sum_s prod_t p(y_t | y_<t, s), (row,), nats: of all scored tokens of a row together.

        Raises:
            DataError: the rows have no labels.
        """
        return self.draw_log_density.logsumexp(0) - math.log(len(self._known))

    @cached_property
    def draw_log_density(self) -> Tensor:
        """ln prod_t p(y_t | y_<t, s) of all scored tokens of a row under every draw, (sample, row), nats.

        Raises:
            DataError: the rows have no labels.
        """
        return self._known.sum(-1)

    def positions(self, row: int) -> Tensor:
        """Places of the scored tokens of a row, (scored,)."""
        return self.scored[row].nonzero().squeeze(-1)

    def metrics(self) -> dict[str, float]:
        """What an evaluation reports.

            nll           -ln p(all scored tokens of a row), nats, summed over rows, by the number of tokens
            perplexity    exp(nll)
            token_nll     the same with the draws averaged at each token, not over the row; the two agree for one draw
            sequence_nll  -ln p(all scored tokens of a row), nats, mean over rows

        Raises:
            DataError: no token has a label.
        """
        known_labels(self.labels)
        count = int(self.num_tokens.sum())
        if count == 0:
            raise DataError(
                "no token of the predicted rows has a label, so no metric can be had. Predict rows with a completion."
            )
        nll = -float(self.log_density.sum()) / count
        return {
            "nll": nll,
            "perplexity": math.exp(nll) if nll < 700 else math.inf,
            "token_nll": -float(self.token_log_probs.sum()) / count,
            "sequence_nll": -float(self.log_density.mean()),
        }

    @property
    def _known(self) -> Tensor:
        known_labels(self.labels)
        assert self.log_probs is not None
        return self.log_probs
