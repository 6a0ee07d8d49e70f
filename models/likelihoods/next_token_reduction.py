"""What a language model says of a batch under many draws, taken in pass by pass and kept small."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.language import LanguagePrediction

# Probabilities worked on at once: 32 MiB in double precision.
_NUMBERS = 2**22
# Logits of a pass up to which draws share it: 512 MiB in single precision.
_NUMBERS_PER_PASS = 2**27


class NextTokenReduction:
    """Takes in the logits of each pass over a batch, and keeps of them

        ln p_s(y_t | y_<t) and H[p_s] of every draw s and scored token t,  and sum_s p_s of every scored token,

    of which the last alone is as wide as the vocabulary, once for all draws. In double precision, since mutual
    information is a small difference of entropies.

    Args:
        scored: (row, token), which tokens are asked for; never the first of a row.
        labels: (row, token), where there are some.
        inputs: what the network is run with.
        keeps_last: whether the network can be told to make logits for a row's last tokens only.
        vocabulary: size of it.

    Attributes:
        inputs: the same, and where it can be told, without logits in front of the first that is needed.
        draws_per_pass: draws whose logits are not too many for one pass, at least one.
    """

    def __init__(
        self,
        scored: Tensor,
        labels: Tensor | None,
        inputs: Mapping[str, Any] | None = None,
        *,
        keeps_last: bool = False,
        vocabulary: int = 1,
    ) -> None:
        self._scored, self._labels = scored.cpu(), None if labels is None else labels.cpu()
        needed = num_last(self._scored)
        self.inputs: Mapping[str, Any] = inputs or {}
        if keeps_last:
            self.inputs = {**self.inputs, "logits_to_keep": needed}
        self.draws_per_pass = max(
            1, _NUMBERS_PER_PASS // (len(scored) * (needed if keeps_last else scored.shape[1]) * vocabulary)
        )
        self._log_probs: list[Tensor] = []  # (scored,) for each draw
        self._entropies: list[Tensor] = []
        self._probs: Tensor | None = None  # (scored, vocabulary), the sum over draws

    def add(self, logits: Tensor) -> None:
        """Take in draws.

        Args:
            logits: (draw, row, token, vocabulary), of all tokens or of a row's last ones.
        """
        scored = self._scored[:, self._scored.shape[1] - logits.shape[2] + 1 :].to(logits.device)
        labels = None if self._labels is None else self._labels[self._scored].to(logits.device)
        for of_draw in logits:
            self._add(of_draw[:, :-1][scored], labels)

    def _add(self, logits: Tensor, labels: Tensor | None) -> None:
        """One draw, (scored, vocabulary)."""
        if self._probs is None:
            self._probs = torch.zeros_like(logits, dtype=torch.double)
        entropies = logits.new_zeros(len(logits), dtype=torch.double)
        of_labels = torch.zeros_like(entropies)
        for part in _parts(logits):
            log_probs = logits[part].double().log_softmax(-1)
            probs = log_probs.exp()
            self._probs[part] += probs
            if labels is not None:
                of_labels[part] = log_probs.gather(-1, labels[part, None]).squeeze(-1)
            # 0 times the logarithm of 0 is to be 0.
            entropies[part] = -probs.mul_(log_probs.clamp_min_(torch.finfo(torch.double).min)).sum(-1)
        self._log_probs.append(of_labels.cpu())
        self._entropies.append(entropies.cpu())

    def prediction(self) -> LanguagePrediction:
        """Of all draws that were taken in, at least one."""
        assert self._probs is not None
        total = self._probs.new_zeros(len(self._probs))
        for part in _parts(self._probs):
            total[part] = torch.special.entr(self._probs[part] / len(self._entropies)).sum(-1)
        aleatoric = torch.stack(self._entropies).mean(0)
        log_probs = torch.stack([_placed(values, self._scored) for values in self._log_probs])
        return LanguagePrediction(
            log_probs=None if self._labels is None else log_probs,
            total_entropy=_placed(total.cpu(), self._scored),
            aleatoric_entropy=_placed(aleatoric, self._scored),
            scored=self._scored,
            labels=self._labels,
        )


def scored_tokens(inputs: Mapping[str, Any], labels: Tensor | None) -> Tensor:
    """(row, token), those that have a label; without labels all that follow on a token which is no padding."""
    if labels is not None:
        behind = labels[:, 1:] != UNLABELLED
    else:
        mask = inputs.get("attention_mask")
        there = torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()
        behind = there[:, 1:] & there[:, :-1]
    return pad(behind, (1, 0), value=False)


def num_last(scored: Tensor) -> int:
    """Of how many last tokens there must be logits, for tokens (row, token) to be scored; at least 1."""
    columns = scored.any(0).nonzero()
    # The token before the first that is scored says what that one is to be.
    return scored.shape[1] - int(columns[0]) + 1 if len(columns) else 1


def _parts(rows: Tensor) -> list[slice]:
    size = max(1, _NUMBERS // rows.shape[-1])
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _placed(values: Tensor, scored: Tensor) -> Tensor:
    """(row, token), of values (scored,); zeros elsewhere."""
    return torch.zeros(scored.shape, dtype=values.dtype).masked_scatter(scored, values)
