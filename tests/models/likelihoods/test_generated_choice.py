"""Answers that are written: what is learned is a language model, what is predicted is what each draw writes."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from bayes_lora.adapters import unwrap
from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.inference import Ensemble, ItemizedELBO, PointEstimate, predict, trainable_state
from bayes_lora.inference.guides.draw_design import designed_noises
from bayes_lora.models import GeneratedChoice, LikelihoodNetwork
from bayes_lora.models.likelihoods.generated_choice import NAMES, NONE, named
from bayes_lora.models.likelihoods.option_passes import OPTIONS
from tests.choices import questions, slow_text, written_batch
from tests.language import NETWORKS, pair_of

EACH = pytest.mark.parametrize("name", NETWORKS)


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_learned_is_a_language_model(name: str, side: str) -> None:
    """The loss of transformers, summed over the right answer's tokens, and its gradients."""
    model, guide = pair_of(name, likelihood=GeneratedChoice(), sample_scale=0.0)
    batch, rows = written_batch(questions(), side), questions()
    parameters = [of for of in model.network.parameters() if of.requires_grad]
    elbo = ItemizedELBO()
    own = torch.autograd.grad(elbo.differentiable_loss(model, guide, **batch), parameters)
    network: Any = unwrap(model.network)
    losses = []
    for question, options in rows:
        tokens = torch.tensor(question + options[-1])
        logits = network(input_ids=tokens.unsqueeze(0)).logits[0, len(question) - 1 : -1]
        losses.append(cross_entropy(logits, tokens[len(question) :], reduction="sum"))
    loss = torch.stack(losses).mean()
    torch.testing.assert_close(elbo.terms["nll"], loss.detach(), rtol=1e-10, atol=1e-10)
    for one, other in zip(own, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_predicted_is_what_each_draw_writes(name: str, side: str) -> None:
    model, guide = pair_of(name, likelihood=GeneratedChoice(max_new_tokens=5))
    rows = questions()
    batch = written_batch(rows, side)
    del batch["labels"]
    noises = list(designed_noises(model, guide, "independent", 7, range(3)))
    texts = []
    for noise in noises:
        with torch.no_grad(), model.perturbed(noise):
            texts.append([slow_text(model.network, question, 5) for question, _ in rows])
    # So that draws disagree, and some name none: what the first two draws begin with, in two of the rows.
    batch[NAMES] = torch.full((5, 4, 1), 60)
    batch[NAMES][:3, 0, 0] = torch.tensor([text[0] for text in texts[0]])[:3]
    batch[NAMES][:3, 1, 0] = torch.tensor([text[1] for text in texts[1]])[:3]
    batch[NAMES][batch[OPTIONS][..., :1] == -100] = -100
    prediction: Any = predict(model, guide, [batch], num_samples=3, draws="independent", seed=7)
    expected = torch.zeros(3, 5, NONE + 1, dtype=torch.double)
    for draw, written in enumerate(texts):
        for row, text in enumerate(written):
            expected[draw, row, named(text, batch[NAMES][row].tolist())] = 1
    torch.testing.assert_close(prediction.probs, expected)
    assert (prediction.mean_probs[3:, NONE] == 1).all()
    assert (prediction.logits.isneginf().sum(-1) == NONE - torch.tensor([2, 3, 4, 2, 3])).all()
    labelled = model.likelihood.labelled(prediction, torch.zeros(5, dtype=torch.long))
    assert model.likelihood.metrics(labelled)["unparsed"] == pytest.approx(float(expected[..., NONE].mean()))
    assert expected[:, :3, NONE].mean() < 1


def test_other_predictors_write_too() -> None:
    model, _ = pair_of("llama", likelihood=GeneratedChoice(max_new_tokens=4))
    network = LikelihoodNetwork(model.network, model.likelihood)
    batch = written_batch(questions())
    with torch.no_grad():
        text = slow_text(unwrap(model.network), questions()[0][0], 4)
    batch[NAMES][0, 1, 0] = text[2]
    found = PointEstimate(network)([batch])
    assert found.mean_probs[0].argmax() == named(text, batch[NAMES][0].tolist())
    both = Ensemble(network, [trainable_state(network)] * 2)([batch])
    assert torch.equal(both.mean_probs, found.mean_probs)


@pytest.mark.parametrize(
    ("text", "names", "option"),
    [
        ([3, 7, 2, 7, 1], [[7, 1], [7, 2], [-100, -100]], 1),
        ([3, 7, 1, 0], [[7, 1, -100], [7, 1, 0]], 1),
        ([3, 7, 1, 5], [[7, 1, -100], [7, 1, 0]], 0),
        ([7], [[7, 1], [7, 2]], NONE),
        ([], [[7], [8]], NONE),
        ([9], [[9], [9]], 0),
    ],
)
def test_the_first_option_that_is_named(text: list[int], names: list[list[int]], option: int) -> None:
    assert named(text, names) == option


def test_a_text_that_is_sure_can_still_be_learned() -> None:
    """The probability of no option is 0 to rounding, whose logarithm has no gradient."""
    likelihood = GeneratedChoice()

    class Sure(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([40.0, 0.0]))

    network = Sure()
    likelihood._of_texts.logits = lambda *_: network.weight.log_softmax(-1).expand(2, 2)  # type: ignore[method-assign]
    batch = {OPTIONS: torch.zeros(2, 2, 1), NAMES: torch.zeros(2, 2, 1)}
    labels = torch.tensor([0, 1])
    density = likelihood.log_density(likelihood.logits(network, batch, labels), labels)
    (gradient,) = torch.autograd.grad(density.sum(), network.weight)
    assert gradient.isfinite().all()
    assert density.tolist() == pytest.approx([0, -40], abs=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    model, guide = pair_of("llama", likelihood=GeneratedChoice())
    batch = written_batch(questions())
    with pytest.raises(LikelihoodError, match="answers that are written need option_ids and name_ids"):
        predict(model, guide, [{name: of for name, of in batch.items() if name != NAMES}], num_samples=2)
    many = torch.zeros(5, 27, 1, dtype=torch.long)
    with pytest.raises(LikelihoodError, match="a row has 27 options, and there may be 26"):
        predict(model, guide, [{**batch, NAMES: many, OPTIONS: many}], num_samples=2)
    with pytest.raises(LikelihoodError, match="row 0 of the batch has the label 3, an option that it does not have"):
        ItemizedELBO().differentiable_loss(model, guide, **{**batch, "labels": torch.full((5,), 3)})
    with pytest.raises(LikelihoodError, match=r"what a network writes has no gradient\. .* under torch\.no_grad\(\)"):
        model(**{name: of for name, of in batch.items() if name != "labels"})
    with pytest.raises(ConfigurationError, match="max_new_tokens=0 must be an integer"):
        GeneratedChoice(max_new_tokens=0)
