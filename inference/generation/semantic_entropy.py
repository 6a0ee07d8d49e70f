"""How many different things several answers say: their clusters by meaning, and the entropy of these."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError

Clustering = Callable[[Sequence[str]], Sequence[Hashable]]
"""Given the answers to one question, says which of them belong together: those with equal values."""


def semantic_entropy(log_probs: Tensor, clusters: Sequence[Hashable]) -> float:
    """Entropy over meanings, of the probabilities of sequences, nats:

        H = -sum_c P(c) ln P(c),    P(c) = sum_{s in c} p(s) / sum_s p(s)

    The sums go over sequences, so that one which was sampled twice is to be given once. P is normalized over the
    sequences that were seen: the estimator of Farquhar et al. 2024 (Nature 630, "semantic entropy", there with
    probabilities by length), not that of Kuhn et al. 2023 (equation 4), the mean of -ln p(c) over clusters, whose p(c)
    lack what was not sampled.

    Args:
        log_probs: (sequence,), ln p(s), nats; divided by the number of tokens if long answers are not to count less.
        clusters: of each sequence.

    Raises:
        DataError: no sequence, or not one cluster for each.

    Example:
        >>> round(semantic_entropy(torch.tensor([0.5, 0.25, 0.25]).log(), ["a", "a", "b"]), 4)
        0.5623
    """
    _require_one_each(len(log_probs), clusters)
    return _entropy(_sums(log_probs.double().softmax(-1), clusters))


def discrete_semantic_entropy(clusters: Sequence[Hashable]) -> float:
    """Entropy over meanings, of how often each was sampled, nats: no probability of a sequence is needed.

        H = -sum_c P(c) ln P(c),    P(c) = answers in c / answers

    Source: Farquhar et al. 2024, "discrete semantic entropy".

    Args:
        clusters: of every answer, one that was sampled twice being there twice.

    Raises:
        DataError: no answer.

    Example:
        >>> round(discrete_semantic_entropy(["a", "a", "a", "b"]), 4)
        0.5623
    """
    _require_one_each(len(clusters), clusters)
    return _entropy(_sums(torch.ones(len(clusters), dtype=torch.double) / len(clusters), clusters))


def by_relation(same: Callable[[str, str], bool]) -> Clustering:
    """Clusters by a relation: an answer joins the first cluster with whose first answer it is the `same`.

    As in Kuhn et al. 2023, algorithm 1, where `same` is entailment both ways; the relation need not be transitive.
    """

    def clusters(texts: Sequence[str]) -> list[int]:
        firsts: list[str] = []
        found = []
        for text in texts:
            index = next((index for index, first in enumerate(firsts) if same(first, text)), len(firsts))
            if index == len(firsts):
                firsts.append(text)
            found.append(index)
        return found

    return clusters


def by_embedding(encoder: Any, tokenizer: Any, threshold: float = 0.8) -> Clustering:
    """Clusters by the cosine between sentence embeddings: the relation of `by_relation` is ``cosine >= threshold``.

    An embedding is the mean of the encoder's last hidden states over a text's tokens, as sentence encoders such as
    all-MiniLM-L6-v2 are trained to have it. Cosines know topics better than they know answers: "yes" and "no" are
    close. Where answers can be parsed, parse them.

    Args:
        encoder: a model of transformers (AutoModel).
        tokenizer: of it.
        threshold: between -1 and 1.

    Raises:
        ConfigurationError: a threshold that no cosine is.
    """
    if not -1 <= threshold <= 1:
        raise ConfigurationError(f"threshold={threshold!r} is compared with a cosine: it must lie between -1 and 1.")

    def clusters(texts: Sequence[str]) -> list[int]:
        distinct = list(dict.fromkeys(texts))
        cosines = _cosines(encoder, tokenizer, distinct)
        place = {text: index for index, text in enumerate(distinct)}
        return list(
            by_relation(lambda one, other: bool(cosines[place[one], place[other]] >= threshold))(texts)  # type: ignore[arg-type]
        )

    return clusters


@torch.no_grad()
def _cosines(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Of every pair, (text, text); an empty text is close to no other."""
    batch = tokenizer([text or " " for text in texts], padding=True, truncation=True, return_tensors="pt")
    batch = batch.to(next(encoder.parameters()).device)
    training = encoder.training
    encoder.eval()
    try:
        states = encoder(**batch).last_hidden_state
    finally:
        encoder.train(training)
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    means = (states * mask).sum(1) / mask.sum(1)
    units = torch.nn.functional.normalize(means, dim=-1)
    return units @ units.T


def _sums(weights: Tensor, clusters: Sequence[Hashable]) -> Tensor:
    """Of the weights in each cluster."""
    numbers: dict[Hashable, int] = {}
    places = torch.tensor([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    return torch.zeros(len(numbers), dtype=torch.double).index_add(0, places, weights)


def _entropy(probs: Tensor) -> float:
    return float(torch.special.entr(probs).sum())


def _require_one_each(count: int, clusters: Sequence[Hashable]) -> None:
    if count == 0 or len(clusters) != count:
        raise DataError(
            f"there are {count} answers and clusters of {len(clusters)}. Give one cluster for each, of one at least."
        )
