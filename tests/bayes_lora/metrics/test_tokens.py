"""Classes of tokens: densities by hand, whole entities, and where words stand among tokens."""

from dataclasses import replace

import pytest
import torch

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.metrics.classification import evaluate
from bayes_lora.metrics.tokens import TokenPrediction

NAMES = ("O", "B-person", "I-person", "B-place")
LABELS = torch.tensor([[-100, 0, 1, 2, -100], [-100, 3, -100, 0, -100]])


def drawn(num_samples: int = 3, seed: int = 0) -> TokenPrediction:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_samples, 2, 5, 4, generator=generator, dtype=torch.double)
    return TokenPrediction(logits, LABELS, NAMES)


def certain(classes: list[list[int]]) -> TokenPrediction:
    """Of these classes, almost surely."""
    return TokenPrediction(20 * torch.nn.functional.one_hot(torch.tensor([classes]), 4).double(), LABELS, NAMES)


def test_densities_are_of_all_tokens_of_a_row_together() -> None:
    prediction = drawn()
    for row in range(2):
        by_draw = torch.ones(3, dtype=torch.double)
        for token, label in enumerate(LABELS[row].tolist()):
            if label >= 0:
                by_draw *= prediction.probs[:, row, token, label]
        torch.testing.assert_close(prediction.log_density[row], by_draw.mean().log())
    assert prediction.metrics()["nll"] == pytest.approx(-float(prediction.log_density.sum()) / 5)


def test_of_single_tokens_it_is_a_classification() -> None:
    prediction = drawn()
    flat = prediction.of_tokens
    assert flat.labels is not None
    assert flat.labels.tolist() == [0, 1, 2, 3, 0]
    torch.testing.assert_close(flat.logits[:, 3], prediction.logits[:, 1, 1])
    expected = evaluate(flat.mean_probs, flat.labels)
    found = prediction.metrics()
    assert {name: found[name] for name in ("accuracy", "ece", "brier")} == pytest.approx(
        {name: expected[name] for name in ("accuracy", "ece", "brier")}
    )
    torch.testing.assert_close(prediction.mutual_information[0, 1], flat.mutual_information[0])


def test_entities_count_whole() -> None:
    right = certain([[0, 0, 1, 2, 0], [0, 3, 0, 0, 0]]).metrics()
    assert [right[f"entity_{name}"] for name in ("precision", "recall", "f1")] == [1.0, 1.0, 1.0]
    # Half of the person is none; the place, and one that is not there.
    wrong = certain([[0, 0, 1, 0, 0], [0, 3, 0, 1, 0]]).metrics()
    assert wrong["entity_precision"] == pytest.approx(1 / 3)
    assert wrong["entity_recall"] == pytest.approx(1 / 2)
    assert wrong["entity_f1"] == pytest.approx(2 / 5)
    nothing = certain([[0] * 5, [0] * 5]).metrics()
    assert nothing["entity_f1"] == 0
    plain = replace(drawn(), label_names=("noun", "verb", "other", "none"))
    assert not any(name.startswith("entity") for name in plain.metrics())


def test_words_stand_at_their_tokens() -> None:
    """Of rows without labels it is known where words are; labels come later, by word."""
    unknown = replace(drawn(), labels=LABELS.where(LABELS < 0, -1))
    assert unknown.positions(1).tolist() == [1, 3]
    with pytest.raises(DataError, match="no token of the predicted rows has a label"):
        unknown.metrics()
    words = torch.tensor([[0, 1, 2], [3, 0, -100]])
    placed = unknown.with_words(words)
    assert placed.labels is not None
    assert placed.labels.tolist() == LABELS.tolist()
    # The third word of row 1 was cut off with its token.
    assert unknown.with_words(torch.tensor([[0, 1, 2], [3, 0, 1]])).labels.tolist() == LABELS.tolist()  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match="row 0 has 3 words to be labelled, and 2 labels"):
        unknown.with_words(torch.tensor([[0, 1], [3, 0]]))
    assert certain([[0, 0, 1, 2, 0], [0, 3, 0, 0, 0]]).tags(1) == ["B-place", "O"]
    assert replace(drawn(), labels=None).positions(0).tolist() == [0, 1, 2, 3, 4]


def test_what_has_no_metrics() -> None:
    with pytest.raises(DataError, match="no labels"):
        replace(drawn(), labels=None).metrics()
    with pytest.raises(DataError, match="no token"):
        replace(drawn(), labels=torch.full((2, 5), -100)).metrics()
