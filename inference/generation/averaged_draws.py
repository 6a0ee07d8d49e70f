"""Several draws that write one text: their next-token probabilities averaged, and the same token for all of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.language import LanguagePrediction

Choose = Callable[[Tensor, Tensor, int], Tensor]


class AveragedDraws(LogitsProcessor):
    """Lets the rows of `generate`, grouped by draw, follow the posterior predictive of each of their texts:

        p(y_t | y_<t) = 1/S sum_s p(y_t | y_<t, A_s),

    of probabilities, not of logits. The token is chosen here, once for a text, and is the only one that `generate`
    finds possible, in the rows of all draws. Of the distributions there stay their entropies and the probability of
    the token that was chosen; one draw after the other, so that beside the network's own scores there is never more
    than a few numbers for each text and token of the vocabulary.

    Args:
        num_draws: S.
        choose: given tokens (text, token), probabilities (text, vocabulary) and the number of the step, the tokens.
        ends: tokens that end a text.
    """

    def __init__(self, num_draws: int, choose: Choose, ends: Sequence[int]) -> None:
        self._num_draws, self._choose, self._ends = num_draws, choose, ends
        self._rounding: Tensor | None = None
        self._open: Tensor | None = None  # (text,)
        self._log_probs: list[Tensor] = []  # (draw, text) for each step
        self._total: list[Tensor] = []  # (text,)
        self._aleatoric: list[Tensor] = []
        self._tokens: list[Tensor] = []

    def keep_rounding(self, network: Any, arguments: Any, output: Any) -> None:
        """A forward hook for a network in double precision, of whose logits `generate` shows the rounded ones only."""
        last = output.logits[:, -1]
        self._rounding = last - last.float()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (row, vocabulary) with one possible token each; rows are texts under draw 0, then under draw 1."""
        draws = scores.unflatten(0, (self._num_draws, -1))
        num_texts = draws.shape[1]
        mean = torch.zeros_like(draws[0], dtype=torch.double)
        entropies, offsets = [], []
        for index, logits in enumerate(draws):
            probs, entropy, offset = _softmax(self._exact(logits, index))
            mean += probs
            entropies.append(entropy)
            offsets.append(offset)
        mean /= self._num_draws
        tokens = self._choose(input_ids[:num_texts], mean, len(self._tokens))
        at = tokens.expand(self._num_draws, -1).unsqueeze(-1)
        of_token = self._exact(draws.gather(-1, at), None, at).squeeze(-1)
        self._record(tokens, of_token - torch.stack(offsets), torch.stack(entropies).mean(0), mean)
        return torch.full_like(draws, -torch.inf).scatter_(-1, at, 0.0).flatten(0, 1)

    def _exact(self, logits: Tensor, draw: int | None, at: Tensor | None = None) -> Tensor:
        """In double precision, with what rounding took off."""
        if self._rounding is None:
            return logits.double()
        rounding = self._rounding.unflatten(0, (self._num_draws, -1))
        lost: Tensor = rounding[draw] if at is None else rounding.gather(-1, at)
        return logits.double() + lost

    def _record(self, tokens: Tensor, log_probs: Tensor, aleatoric: Tensor, mean: Tensor) -> None:
        if self._open is None:
            self._open = torch.ones_like(tokens, dtype=torch.bool)
        self._tokens.append(tokens.where(self._open, UNLABELLED))
        self._log_probs.append(log_probs.where(self._open, 0.0))
        self._aleatoric.append(aleatoric.where(self._open, 0.0))
        self._total.append(torch.special.entr(mean).sum(-1).where(self._open, 0.0))
        for end in self._ends:
            self._open = self._open & (tokens != end)

    def written(self) -> LanguagePrediction:
        """The texts (text, token) and what each of their tokens was predicted with, on the CPU."""
        tokens = torch.stack(self._tokens, -1).cpu()
        return LanguagePrediction(
            log_probs=torch.stack(self._log_probs, -1).cpu(),
            total_entropy=torch.stack(self._total, -1).cpu(),
            aleatoric_entropy=torch.stack(self._aleatoric, -1).cpu(),
            scored=tokens != UNLABELLED,
            labels=tokens,
        )


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of logits (text, vocabulary), their entropy (text,), and what ln p falls short of logits by."""
    most = logits.amax(-1, keepdim=True)
    # Finite, since 0 times the logarithm of 0 is to be 0. One exponential for each: they are what this costs.
    shifted = (logits - most).clamp_min_(torch.finfo(logits.dtype).min)
    probs = shifted.exp()
    sums = probs.sum(-1, keepdim=True)
    probs /= sums
    log_sums = sums.log().squeeze(-1)
    return probs, log_sums - torch.linalg.vecdot(probs, shifted), most.squeeze(-1) + log_sums
