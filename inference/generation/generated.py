"""Texts that a network wrote, and how sure it was of each token and of the whole."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from bayes_lora.metrics.language import LanguagePrediction


@dataclass(frozen=True)
class Generation(LanguagePrediction):
    """A `LanguagePrediction` whose labels are the tokens that were written: all that it says of tokens holds of them.

    Attributes:
        log_probs: (draw, text, token), ln p(y_t | y_<t, draw), nats. Draws are averaged at each token in
            `token_log_probs`, which is what the text was chosen by, and over the whole text in `log_density`.
        total_entropy, aleatoric_entropy: (text, token) of the distribution that the token was chosen from, before
            temperature, top-k and top-p, nats; `mutual_information` is their difference.
        scored: (text, token), whether there is a token: a text that has come to its end has no more.
        labels: (text, token), the tokens, and -100 behind the end.
        finished: (text,), whether it ended by itself, with the token that ends a text, and not at the limit.
        texts: without special tokens, where there was a tokenizer.
    """

    finished: Tensor
    texts: tuple[str, ...] | None = None

    @classmethod
    def of(cls, written: LanguagePrediction, ends: Sequence[int], tokenizer: Any | None) -> "Generation":
        """Of what was written, decoded by the tokenizer where there is one."""
        kept = {field.name: getattr(written, field.name) for field in fields(written)}
        assert written.labels is not None
        finished = sum((written.labels == end for end in ends), written.scored & False).bool().any(-1)
        found = cls(**kept, finished=finished)
        if tokenizer is None:
            return found
        texts = tuple(tokenizer.decode(row, skip_special_tokens=True) for row in found.tokens)
        return cls(**kept, finished=finished, texts=texts)

    @property
    def tokens(self) -> list[list[int]]:
        """Of each text, with the token that ends it."""
        assert self.labels is not None
        return [row[kept].tolist() for row, kept in zip(self.labels, self.scored, strict=True)]

    def texts_of(self, rows: slice) -> "Generation":
        """Some of them."""
        assert self.log_probs is not None
        assert self.labels is not None
        return Generation(
            self.log_probs[:, rows],
            self.total_entropy[rows],
            self.aleatoric_entropy[rows],
            self.scored[rows],
            self.labels[rows],
            self.finished[rows],
            None if self.texts is None else self.texts[rows],
        )

    def scores(self) -> dict[str, Tensor]:
        """Of every text (text,), double precision, larger where the network is less sure of it:

            nll                                  -sum_t ln p(y_t | y_<t), nats: draws averaged at each token
            nll_per_token                        the same by the number of tokens
            joint_nll                            -ln 1/S sum_s prod_t p(y_t | y_<t, s), nats: over the whole text
            joint_nll_per_token                  the same by the number of tokens
            total_entropy, aleatoric_entropy,    summed over tokens, nats; with `_per_token`, their mean, and with
            mutual_information                   `_max`, the largest

        Example:
            >>> generation.scores()["mutual_information_per_token"]  # doctest: +SKIP
        """
        num_tokens = self.num_tokens
        whole = {"nll": -self.token_log_probs.sum(-1), "joint_nll": -self.log_density}
        found: dict[str, Tensor] = {}
        for name, value in whole.items():
            found |= {name: value, f"{name}_per_token": value / num_tokens}
        for name in ("total_entropy", "aleatoric_entropy", "mutual_information"):
            of_tokens: Tensor = getattr(self, name)
            total = of_tokens.sum(-1)
            found |= {name: total, f"{name}_per_token": total / num_tokens, f"{name}_max": of_tokens.amax(-1)}
        return found

    def table(self) -> list[dict[str, Any]]:
        """One row a text: number of its prompt, text, tokens, whether it ended by itself, and all `scores`."""
        return table_of(self, [{"prompt": index} for index in range(len(self.scored))])


def table_of(generation: Generation, first: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a text, with what stands first in it."""
    columns: dict[str, list[Any]] = {
        **({} if generation.texts is None else {"text": list(generation.texts)}),
        "num_tokens": generation.num_tokens.tolist(),
        "finished": generation.finished.tolist(),
        **{name: values.tolist() for name, values in generation.scores().items()},
    }
    return [{**named, **{name: values[index] for name, values in columns.items()}} for index, named in enumerate(first)]
