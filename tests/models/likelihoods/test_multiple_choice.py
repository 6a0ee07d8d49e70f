"""Multiple choice against each option scored in a pass of its own; rows and options that do not fit."""

import math
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from bayes_lora.adapters import unwrap
from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.inference import (
    ItemizedELBO,
    MahalanobisDistance,
    NearestNeighbours,
    PointEstimate,
    Prediction,
    fit_temperature,
    fit_vbll,
    predict,
)
from bayes_lora.inference.guides.draw_design import designed_noises
from bayes_lora.inference.predictors.outside.hidden_states import hidden_states
from bayes_lora.models import BayesianLoRA, LikelihoodNetwork, MultipleChoice
from bayes_lora.models.likelihoods.option_passes import OPTIONS, SHARING, option_inputs, shares_questions
from tests.choices import choice_batch, questions, slow_log_probs
from tests.language import NETWORKS, SHARING_NETWORKS, pair_of
from tests.networks import build_bert

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
# All of these networks but GPT-2 take norms in float32, and softmax where attention is "eager": what sums gradients in
# another order is rounded otherwise.
ROUNDED: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}
SCORINGS = {"letter": (True, False), "sum": (False, False), "per token": (False, True)}
EACH = pytest.mark.parametrize("name", NETWORKS)
SCORING = pytest.mark.parametrize(("letters", "per_token"), SCORINGS.values(), ids=SCORINGS)


def choosing(name: str, *, per_token: bool = False, **config: Any) -> tuple[BayesianLoRA, Any]:
    return pair_of(name, likelihood=MultipleChoice(per_token=per_token), **config)


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


def gradients(loss: Tensor, network: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [of for of in network.parameters() if of.requires_grad]))


@EACH
@SCORING
@pytest.mark.parametrize("side", ["left", "right"])
def test_without_noise_it_is_each_option_alone(name: str, side: str, letters: bool, per_token: bool) -> None:
    """The same log-probabilities, loss and gradients; rows differ in everything that they may differ in."""
    model, guide = choosing(name, per_token=per_token, sample_scale=0.0)
    rows = questions(letters=letters)
    batch = choice_batch(rows, side)
    labels = batch["labels"]
    elbo = ItemizedELBO()
    own = gradients(elbo.differentiable_loss(model, guide, **batch), model.network)
    network: Any = unwrap(model.network)
    slow = slow_log_probs(network, rows, per_token=per_token)
    loss = -slow.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).mean()
    torch.testing.assert_close(elbo.terms["nll"], loss.detach(), **EXACT)
    for one, other in zip(own, gradients(loss, network), strict=True):
        torch.testing.assert_close(one, other, **(EXACT if name == "gpt2" else ROUNDED))
    with torch.no_grad():
        found = MultipleChoice(per_token=per_token).logits(network, without_labels(batch))
    torch.testing.assert_close(found, slow.detach(), **EXACT)
    assert (found == -torch.inf).sum() == 6  # five rows of 2, 3, 4, 2 and 3 options


@EACH
@SCORING
def test_draws_are_those_of_each_option_alone(name: str, letters: bool, per_token: bool) -> None:
    """Probabilities are averaged over draws, not their logarithms; halves of different width go together."""
    model, guide = choosing(name, per_token=per_token)
    rows = questions(letters=letters)
    halves = [choice_batch(rows[:2], "left"), choice_batch(rows[2:], "right")]
    prediction = predict(model, guide, halves, num_samples=3, draws="independent", seed=7)
    probs = []
    for noise in designed_noises(model, guide, "independent", 7, range(3)):
        with torch.no_grad(), model.perturbed(noise):
            probs.append(slow_log_probs(model.network, rows, per_token=per_token).softmax(-1))
    torch.testing.assert_close(prediction.probs, torch.stack(probs), **EXACT)
    torch.testing.assert_close(prediction.mean_probs, torch.stack(probs).mean(0), **EXACT)
    assert not torch.allclose(prediction.mean_probs, prediction.logits.mean(0).softmax(-1), atol=1e-6)
    assert prediction.mutual_information.isfinite().all()
    assert prediction.mutual_information.max() > 1e-8
    metrics = model.likelihood.all_metrics(prediction, prediction)
    assert metrics["ood_auroc_entropy"] == 0.5


@pytest.mark.parametrize("name", SHARING_NETWORKS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_options_share_their_question(name: str, attention: str) -> None:
    """One row for a question and all of its options, in every kind of network that is said to do so."""
    model, _ = choosing(name, sample_scale=0.0)
    network: Any = unwrap(model.network)
    base = network.get_base_model()
    if base._supports_sdpa or attention == "eager":
        base.set_attn_implementation(attention)
    rows = questions()
    batch = without_labels(choice_batch(rows))
    assert shares_questions(network)
    assert option_inputs(network, batch)["input_ids"].shape == (5, 11 + 4 * 4)
    with torch.no_grad():
        found, slow = MultipleChoice().logits(network, batch), slow_log_probs(network, rows)
    torch.testing.assert_close(found, slow, **(EXACT if base.config._attn_implementation == "sdpa" else ROUNDED))


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("letters", [True, False])
def test_where_questions_end(letters: bool, shares: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hidden state behind the question alone, whatever the options are, and however they are run."""
    model, _ = choosing("gpt2", sample_scale=0.0)
    network: Any = unwrap(model.network)
    if not shares:
        monkeypatch.setattr(network.get_base_model().config, "model_type", "another")
    rows, batch = questions(letters=letters), choice_batch(questions(letters=letters), "left")
    point = PointEstimate(LikelihoodNetwork(network, MultipleChoice()))
    prediction, states = hidden_states(point, [batch])
    alone = [
        network.base_model.model.transformer(input_ids=torch.tensor([question])).last_hidden_state[0, -1]
        for question, _ in rows
    ]
    torch.testing.assert_close(states, torch.stack(alone).detach(), **EXACT)
    assert torch.equal(prediction.logits, point([batch]).logits)
    assert NearestNeighbours.fit(point, [batch]).k == 5
    with pytest.raises(ConfigurationError, match="no classes that rows could share"):
        MahalanobisDistance.fit(point, [batch])
    with pytest.raises(ConfigurationError, match="no classes that rows could share"):
        fit_vbll(point, [batch])


def test_every_kind_that_shares_is_tested() -> None:
    networks: list[Any] = [choosing(name)[0].network for name in SHARING_NETWORKS]
    kinds = {network.config.model_type for network in networks}
    assert kinds == SHARING


def test_other_networks_have_the_question_once_for_each_option(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = choosing("llama", sample_scale=0.2)
    batches = [choice_batch(questions(), "left")]
    shared = predict(model, guide, batches, num_samples=2)
    network: Any = model.network
    monkeypatch.setattr(network.get_base_model().config, "model_type", "another")
    assert not shares_questions(model.network)
    inputs = without_labels(batches[0])
    assert option_inputs(model.network, inputs)["input_ids"].shape == (5 * 4, 11 + 4)
    apart = predict(model, guide, batches, num_samples=2)
    torch.testing.assert_close(apart.probs, shared.probs, **EXACT)
    with pytest.raises(LikelihoodError, match="two options or more"):
        predict(model, guide, [{**inputs, OPTIONS: inputs[OPTIONS][:, :1]}], num_samples=2)


def test_a_mask_that_lets_options_see_each_other_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the tests above."""
    model, _ = choosing("llama", sample_scale=0.0)
    network: Any = unwrap(model.network)
    monkeypatch.setattr("bayes_lora.models.likelihoods.option_passes._siblings", lambda *given: given[3].long())
    batch = without_labels(choice_batch(questions()))
    with torch.no_grad():
        found, slow = MultipleChoice().logits(network, batch), slow_log_probs(network, questions())
    assert float((found - slow).nan_to_num().abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradients_go_through_checkpointing() -> None:
    model, guide = choosing("llama", sample_scale=0.2)
    network: Any = model.network
    batch = choice_batch(questions())
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(0)
        found.append(gradients(ItemizedELBO().differentiable_loss(model, guide, **batch), model.network))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_what_does_not_fit_is_refused() -> None:
    model, guide = choosing("llama")
    batch = choice_batch(questions())

    def said(**changes: Any) -> Any:
        given = {key: value for key, value in {**batch, **changes}.items() if value is not None}
        return predict(model, guide, [given], num_samples=2)

    options = batch[OPTIONS]
    with pytest.raises(LikelihoodError, match=r"the batch has input_ids, attention_mask; .* and option_ids"):
        said(**{OPTIONS: None})
    with pytest.raises(LikelihoodError, match=r"option_ids has shape \(4, 4, 5\), torch.int64, for 5 rows"):
        said(**{OPTIONS: options[:4]})
    holes = options.clone()
    holes[2, 0, 0] = -100
    with pytest.raises(LikelihoodError, match="nothing but -100 behind an option's last token"):
        said(**{OPTIONS: holes})
    with pytest.raises(LikelihoodError, match="there is a token 50, and the network knows 50"):
        said(**{OPTIONS: options.where(options != options.max(), 50)})
    with pytest.raises(LikelihoodError, match="there is a token 77"):
        said(input_ids=torch.full_like(batch["input_ids"], 77))
    with pytest.raises(LikelihoodError, match="a row has no question"):
        said(attention_mask=torch.zeros_like(batch["attention_mask"]))
    elbo = ItemizedELBO()
    with pytest.raises(LikelihoodError, match="row 0 of the batch has the label 2, an option that it does not have"):
        elbo.differentiable_loss(model, guide, **{**batch, "labels": torch.full((5,), 2)})
    with pytest.raises(LikelihoodError, match="labels run from 0 to 4, but there are 4 classes"):
        elbo.differentiable_loss(model, guide, **{**batch, "labels": torch.arange(5)})
    with pytest.raises(ConfigurationError, match="per_token=2 must be True or False"):
        MultipleChoice(per_token=2)  # type: ignore[arg-type]
    torch.manual_seed(0)
    bert = peft.get_peft_model(build_bert(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(LikelihoodError, match="multiple choice asks a language model"):
        LikelihoodNetwork(bert, MultipleChoice())(**{**batch, OPTIONS: options[..., :1].clamp_min(1)})


def choices(num_rows: int = 40) -> Prediction:
    """Of four draws, over two to four options."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, num_rows, 4, generator=generator, dtype=torch.double)
    labels = torch.randint(0, 2, (num_rows,), generator=generator)
    logits[:, ::3, 2:] = -torch.inf
    logits[:, 1::3, 3] = -torch.inf
    return Prediction(logits, labels)


def test_options_that_a_row_lacks_count_nowhere() -> None:
    """All metrics are those of rows that are taken by their number of options, each with no other class at all."""
    likelihood, prediction = MultipleChoice(), choices()
    parts = [
        Prediction(prediction.logits[:, start::3, : start + 2], prediction.labels[start::3])  # type: ignore[index]
        for start in range(3)
    ]
    for name, values in {**likelihood.losses(prediction), **likelihood.uncertainty(prediction)}.items():
        assert values.isfinite().all(), name
        for start, part in enumerate(parts):
            alone = {**likelihood.losses(part), **likelihood.uncertainty(part)}[name]
            torch.testing.assert_close(values[start::3], alone, rtol=1e-12, atol=1e-12)
    assert all(math.isfinite(value) for value in likelihood.all_metrics(prediction, prediction).values())


def test_a_temperature_leaves_them_impossible() -> None:
    likelihood, prediction = MultipleChoice(), choices()
    temperature = fit_temperature(prediction, likelihood)

    def nll(at: float) -> float:
        return float(likelihood.losses(likelihood.rescaled(prediction, at))["nll"].mean())

    assert 1.5 < temperature < 100
    assert nll(temperature) < min(nll(0.99 * temperature), nll(1.01 * temperature))
    assert (likelihood.rescaled(prediction, 1e3).probs[0, ::3, 2:] == 0).all()
    flat = torch.zeros(1, 3, 3).index_fill(-1, torch.tensor(2), -torch.inf)
    assert fit_temperature(Prediction(flat, torch.tensor([0, 1, 0])), likelihood) == 1.0


def test_what_the_trainer_fills_up_is_no_option() -> None:
    likelihood, prediction = MultipleChoice(), choices(6)
    wide = torch.nn.functional.pad(likelihood.summary(prediction), (0, 2), value=-100)
    again = likelihood.of_summary(wide, prediction.labels)
    assert (again.mean_probs[:, 4:] == 0).all()
    assert likelihood.metrics(again) == pytest.approx(likelihood.metrics(prediction), rel=1e-12)
