"""Predictions of language models against those of each draw and row alone."""

from typing import Any

import pytest
import torch

from bayes_lora.adapters import unwrap
from bayes_lora.errors import DataError, LikelihoodError
from bayes_lora.inference import Ensemble, predict, trainable_state
from bayes_lora.inference.guides.draw_design import designed_noises
from bayes_lora.models import CausalLanguageModel, LikelihoodNetwork
from bayes_lora.models.likelihoods.next_token_reduction import NextTokenReduction
from tests.language import padded, pair_of, texts


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_predictions_are_those_of_each_draw_and_row_alone(name: str, side: str) -> None:
    model, guide = pair_of(name)
    rows = texts()
    halves = [padded(rows[:2], side), padded(rows[2:], side)]
    prediction: Any = predict(model, guide, halves, num_samples=3, draws="independent", seed=7)
    assert prediction.log_probs.shape == (3, 5, 12)
    noises = list(designed_noises(model, guide, "independent", 7, range(3)))
    for index, row in enumerate(rows):
        found = []
        for noise in noises:
            with torch.no_grad(), model.perturbed(noise):
                found.append(model.network_logits({"input_ids": torch.tensor([row])})[0, :-1].log_softmax(-1))
        log_probs = torch.stack(found)[:, 1:]  # of the tokens behind a prompt of two
        of_labels = log_probs.gather(-1, torch.tensor(row[2:])[None, :, None].expand(3, -1, 1)).squeeze(-1)
        mean = log_probs.exp().mean(0)
        places = prediction.positions(index)
        exact: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(prediction.log_probs[:, index, places], of_labels, **exact)
        torch.testing.assert_close(prediction.total_entropy[index, places], -(mean * mean.log()).sum(-1), **exact)
        expected = -(log_probs.exp() * log_probs).sum(-1).mean(0)
        torch.testing.assert_close(prediction.aleatoric_entropy[index, places], expected, **exact)
        torch.testing.assert_close(prediction.log_density[index], of_labels.sum(-1).exp().mean().log(), **exact)
        torch.testing.assert_close(prediction.token_log_probs[index, places], of_labels.exp().mean(0).log(), **exact)
    assert prediction.mutual_information.min() >= -1e-12
    assert prediction.mutual_information.max() > 1e-6


def test_a_reduction_of_the_last_logits_is_that_of_all() -> None:
    logits = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    labels = torch.tensor([[-100, -100, -100, 1, 4, -100], [0, 1, -100, -100, -100, 2], [-100] * 6])
    labels[1, 1] = -100
    likelihood = CausalLanguageModel()
    whole = likelihood.prediction(logits, labels)
    scored = labels != -100
    scored[:, 0] = False
    last = NextTokenReduction(scored, labels, {}, keeps_last=True)
    assert last.inputs == {"logits_to_keep": 4}
    for part in logits[:, :, -4:].split(1):
        last.add(part)
    for name in ("log_probs", "total_entropy", "aleatoric_entropy", "scored", "labels"):
        torch.testing.assert_close(getattr(last.prediction(), name), getattr(whole, name))
    assert whole.num_tokens.tolist() == [2, 1, 0]
    torch.testing.assert_close(
        likelihood.log_density(logits[:, :, -4:], labels), likelihood.log_density(logits, labels)
    )


def test_a_pass_holds_no_more_logits_than_fit() -> None:
    scored = torch.ones(4, 100, dtype=torch.bool)
    scored[:, 0] = False
    for vocabulary, draws in ((50, 6710), (49_152, 6), (262_144, 1), (10**9, 1)):
        assert NextTokenReduction(scored, None, vocabulary=vocabulary).draws_per_pass == draws


def test_rows_without_labels_have_entropies() -> None:
    model, guide = pair_of("llama")
    batch = padded(texts(), "left")
    del batch["labels"]
    prediction: Any = predict(model, guide, [batch], num_samples=2)
    assert prediction.num_tokens.tolist() == [len(row) - 1 for row in texts()]
    assert (prediction.total_entropy[prediction.scored] > 0).all()
    with pytest.raises(DataError, match="the predicted rows have no labels"):
        prediction.metrics()


def test_metrics_of_rows_without_a_label() -> None:
    model, guide = pair_of("llama")
    batch = padded(texts(), "right")
    batch["labels"].fill_(-100)
    with pytest.raises(DataError, match="no token of the predicted rows has a label"):
        predict(model, guide, [batch], num_samples=2).metrics()  # type: ignore[attr-defined]


def test_auto_draws_until_the_label_tokens_are_known() -> None:
    model, guide = pair_of("llama")
    rows = texts()
    halves: list[Any] = [padded(rows[:2], "right"), padded(rows[2:], "right", prompt=6)]
    few: Any = predict(model, guide, halves, num_samples="auto", tolerance=1.0)
    for tolerance, expected in ((1.0, len(few.log_probs)), (1e-12, 64)):
        found: Any = predict(model, guide, halves, num_samples="auto", tolerance=tolerance)
        fixed: Any = predict(model, guide, halves, num_samples=expected, draws="antithetic")
        assert len(found.log_probs) == expected
        for name in ("log_density", "token_log_probs", "total_entropy", "aleatoric_entropy"):
            torch.testing.assert_close(getattr(found, name), getattr(fixed, name), rtol=1e-9, atol=1e-12)
    # Where one batch is known before another, it has its draws again and again.
    alone = [predict(model, guide, [half], num_samples="auto", tolerance=1e-3) for half in halves]
    counts: list[int] = [len(part.log_probs) for part in alone]  # type: ignore[attr-defined]
    together: Any = predict(model, guide, halves, num_samples="auto", tolerance=1e-3)
    assert counts[0] < counts[1]
    assert len(together.log_probs) == counts[1]
    densities = torch.cat([part.log_density for part in alone])  # type: ignore[attr-defined]
    torch.testing.assert_close(together.log_density, densities, rtol=1e-9, atol=1e-12)
    del halves[0]["labels"]
    with pytest.raises(LikelihoodError, match="num_samples='auto' looks at the probabilities of the tokens that are"):
        predict(model, guide, halves[:1], num_samples="auto")


def test_labels_cannot_come_afterwards() -> None:
    model, guide = pair_of("llama")
    batch = padded(texts(), "right")
    with pytest.raises(LikelihoodError, match="Predict batches with 'labels'"):
        model.likelihood.labelled(predict(model, guide, [batch], num_samples=1), batch["labels"])


def test_an_ensemble_without_a_posterior_keeps_what_its_members_disagree_on() -> None:
    """Against the logits of both members together, which are never held at once where the vocabulary is large."""
    model, _ = pair_of("llama")
    network: Any = unwrap(model.network)
    point = LikelihoodNetwork(network, CausalLanguageModel()).eval()
    first = trainable_state(point)
    second = {name: value + 0.3 for name, value in first.items()}
    halves = [padded(texts()[:2], "left"), padded(texts()[2:], "right")]
    found: Any = Ensemble(point, [first, second])(halves)
    parts = []
    for half in halves:
        inputs = {name: value for name, value in half.items() if name != "labels"}
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        logits = []
        for state in (first, second):
            point.load_state_dict(state, strict=False)
            with torch.no_grad():
                logits.append(network(**inputs, position_ids=positions).logits)
        parts.append(CausalLanguageModel().prediction(torch.stack(logits), half["labels"]))
    expected = CausalLanguageModel().joined(parts)
    for name in ("log_probs", "total_entropy", "aleatoric_entropy", "scored", "labels"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)
    assert found.mutual_information.max() > 1e-3
