"""Classes of tokens under several draws: how likely each is, what is not known, and how good that is."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.classification import evaluate
from bayes_lora.metrics.drawn_prediction import DrawnPrediction
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction


@dataclass(frozen=True)
class TokenPrediction(DrawnPrediction):
    """Class probabilities of every token of every row under every draw; given a draw, tokens are independent.

    Attributes:
        logits: (sample, row, token, class); behind a row's last token, numbers without a meaning.
        labels: (row, token); -100 where a token has none, and -1 where it is to have one that nobody knows.
        label_names: (class,) where they have names.
    """

    logits: Tensor
    labels: Tensor | None
    label_names: tuple[str, ...] = ()

    @cached_property
    def of_tokens(self) -> Prediction:
        """The labelled tokens of all rows, one after the other, as rows of a classification.

        Raises:
            DataError: there are none.
        """
        labels = known_labels(self.labels)
        chosen = labels >= 0
        if not chosen.any():
            raise DataError(
                "no token of the predicted rows has a label, so no metric can be had. Predict rows with labels."
            )
        return Prediction(
            self.logits[:, chosen],
            labels[chosen],
            kl_temperature=self.kl_temperature,
            joint=self.joint,
            block_size=self.block_size,
        )

    @cached_property
    def scored(self) -> Tensor:
        """(row, token), which have a class, or are to have one; all where nothing is said."""
        if self.labels is None:
            return torch.ones(self.logits.shape[1:3], dtype=torch.bool)
        return self.labels != UNLABELLED

    @cached_property
    def probs(self) -> Tensor:
        """(sample, row, token, class), in double precision."""
        return self.logits.double().softmax(-1)

    @cached_property
    def mean_probs(self) -> Tensor:
        """Of the posterior predictive, (row, token, class)."""
        return self.probs.mean(0)

    @cached_property
    def total_entropy(self) -> Tensor:
        """H[E p] of each token, (row, token), nats."""
        entropy: Tensor = torch.special.entr(self.mean_probs).sum(-1)
        return entropy

    @cached_property
    def aleatoric_entropy(self) -> Tensor:
        """E H[p] of each token, (row, token), nats."""
        entropy: Tensor = torch.special.entr(self.probs).sum(-1).mean(0)
        return entropy

    @cached_property
    def mutual_information(self) -> Tensor:
        """Of each token's class and the draw, (row, token), nats: how far the draws disagree."""
        return self.total_entropy - self.aleatoric_entropy

    @cached_property
    def draw_log_density(self) -> Tensor:
        """ln prod_t p(y_t | s) over the labelled tokens of each row under every draw, (sample, row), nats.

        Raises:
            DataError: the rows have no labels.
        """
        labels = known_labels(self.labels)
        labels = labels.where(labels >= 0, UNLABELLED)
        log_probs = self.logits.double().log_softmax(-1)
        return torch.stack([-nll_loss(p.mT, labels, reduction="none").sum(-1) for p in log_probs])

    @cached_property
    def log_density(self) -> Tensor:
        """ln 1/S sum_s prod_t p(y_t | s) over the labelled tokens of each row, (row,), nats.

        Raises:
            DataError: the rows have no labels.
        """
        return self.draw_log_density.logsumexp(0) - math.log(len(self.logits))

    def drawn(self, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Classes of the `scored` tokens under one draw, (count, row, token); -100 for the others."""
        found = torch.full((count, *self.scored.shape), UNLABELLED)
        if self.scored.any():
            probs = self.probs[draw][self.scored]
            found[:, self.scored] = torch.multinomial(probs, count, replacement=True, generator=generator).T
        return found

    def positions(self, row: int) -> Tensor:
        """Places of the `scored` tokens of a row, (word,)."""
        return self.scored[row].nonzero().squeeze(-1)

    def with_words(self, labels: Tensor) -> "TokenPrediction":
        """With the classes of words (row, word), -100 behind the last, in the places of their first tokens.

        Words that were cut off with their row's tokens have none.

        Raises:
            ConfigurationError: fewer words than a row has places for.
        """
        placed = torch.full(self.logits.shape[1:3], UNLABELLED)
        for row, words in enumerate(labels):
            places = self.positions(row)
            if len(words) < len(places):
                raise ConfigurationError(f"row {row} has {len(places)} words to be labelled, and {len(words)} labels.")
            placed[row, places] = words[: len(places)]
        return replace(self, labels=placed)

    def tags(self, row: int) -> list[str]:
        """The names of the likeliest classes of a row's words."""
        return [self._name(index) for index in self.mean_probs[row, self.positions(row)].argmax(-1).tolist()]

    def metrics(self) -> dict[str, float]:
        """What an evaluation reports.

            nll                      -ln p(all tokens of a row), nats, summed over rows, by the number of tokens
            accuracy, ece, brier     of the labelled tokens, see `evaluate`
            entity_precision, _recall, _f1
                                     of whole entities, type and both ends, as CoNLL counts them (seqeval); where
                                     classes are named as such tags are: "O", "B-...", "I-..."

        Raises:
            DataError: no token has a label, or probabilities are no numbers.
        """
        tokens = self.of_tokens
        labels = known_labels(tokens.labels)
        found = evaluate(tokens.mean_probs, labels)
        found["nll"] = -float(self.log_density.sum()) / len(labels)
        return found | self._of_entities()

    def _of_entities(self) -> dict[str, float]:
        if not self.label_names or not all(name == "O" or name[:2] in ("B-", "I-") for name in self.label_names):
            return {}
        # Imported where it is needed: it is an extra's.
        from seqeval.metrics import f1_score, precision_score, recall_score  # type: ignore[import-untyped]

        labels = known_labels(self.labels)
        rows = [row for row in range(len(labels)) if (labels[row] >= 0).any()]
        true = [[self._name(label) for label in labels[row][labels[row] >= 0].tolist()] for row in rows]
        predicted = [
            [self._name(index) for index in self.mean_probs[row][labels[row] >= 0].argmax(-1).tolist()] for row in rows
        ]
        scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
        return {f"entity_{name}": float(of(true, predicted, zero_division=0)) for name, of in scores.items()}

    def _name(self, index: int) -> str:
        return self.label_names[index] if self.label_names else str(index)
