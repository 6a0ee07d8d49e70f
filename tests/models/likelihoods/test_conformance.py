"""Every likelihood keeps what `Likelihood` promises: found by its file, so a new one is tested by being there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from transformers import BertForTokenClassification, TrainingArguments

import bayes_lora as bl
from bayes_lora.errors import LikelihoodError
from bayes_lora.inference import (
    FitOptions,
    MonteCLoRAGuide,
    SVITrainer,
    TemperatureScaled,
    fit,
    fit_temperature,
    predict,
)
from bayes_lora.models import BayesianLoRA, Likelihood, Ordinal
from bayes_lora.models.likelihoods.gaussian_regression import GaussianRegression
from bayes_lora.models.likelihoods.kinds import likelihood_kinds
from tests.networks import build_bert, build_llama, make_batch
from tests.statistics import deviation

NUM_ROWS, NUM_OUTPUTS = 5, 3
# Of those that cannot be made for any network of three outputs, one; the last number is that of its outputs.
OTHERS: dict[str, tuple[Callable[[], Likelihood], int]] = {"ordinal": (lambda: Ordinal(4), 1)}
KINDS = pytest.mark.parametrize("likelihood", likelihood_kinds().values(), ids=likelihood_kinds(), indirect=True)


@pytest.fixture
def likelihood(request: pytest.FixtureRequest) -> Likelihood:
    kind: type[Likelihood] = request.param
    build, _ = OTHERS.get(kind.kind, (lambda: kind.of_network(nn.Identity()), NUM_OUTPUTS))
    return build().double()


def logits_of(likelihood: Likelihood, *shape: int) -> Tensor:
    _, num_outputs = OTHERS.get(likelihood.kind, (None, NUM_OUTPUTS))
    tokens = [4] * (likelihood.row_dims - 1)
    return torch.randn(*shape, *tokens, num_outputs, generator=torch.Generator().manual_seed(3), dtype=torch.double)


def labels_for(likelihood: Likelihood, logits: Tensor) -> Tensor:
    return likelihood.distribution(logits)()  # type: ignore[no-any-return]


@KINDS
def test_it_is_made_again_from_its_settings(likelihood: Likelihood) -> None:
    again = type(likelihood).from_settings(nn.Identity(), likelihood.settings()).double()
    again.load_state_dict(likelihood.state_dict())
    logits = logits_of(likelihood, NUM_ROWS)
    labels = labels_for(likelihood, logits)
    assert torch.equal(again.log_density(logits, labels), likelihood.log_density(logits, labels))
    assert again.settings() == likelihood.settings()


@KINDS
def test_the_sites_hold_the_mean_density(likelihood: Likelihood) -> None:
    logits = logits_of(likelihood, NUM_ROWS)
    drawn = poutine.trace(likelihood).get_trace(logits, None).nodes["y"]["value"]
    trace = poutine.trace(likelihood).get_trace(logits, drawn)
    density = likelihood.log_density(logits, drawn)
    assert density.shape == (NUM_ROWS,)
    expected = density.sum() / likelihood.num_observations(drawn)
    torch.testing.assert_close(trace.log_prob_sum(lambda name, _: name == "y"), expected)
    assert torch.equal(trace.nodes["logits"]["value"], logits)
    several = likelihood.log_density(torch.stack([logits, 2 * logits]), drawn)
    torch.testing.assert_close(several, torch.stack([density, likelihood.log_density(2 * logits, drawn)]))


def mean_score(likelihood: Likelihood) -> Tensor:
    """Deviations from 0 of the mean gradient of the log density at labels of its own, in standard errors."""
    logits = logits_of(likelihood, 1).repeat(20_000, *[1] * likelihood.row_dims).requires_grad_()
    labels = labels_for(likelihood, logits.detach())
    (score,) = torch.autograd.grad(likelihood.log_density(logits, labels).sum(), logits)
    return deviation(score[:, score.any(0)], 0.0)  # a language model has no use for the logits of a row's last token


@KINDS
def test_it_is_a_density(likelihood: Likelihood) -> None:
    """E d/dlogits log p(y | logits) = 0, since p sums to 1 at all logits."""
    assert mean_score(likelihood).abs().max() < 5


def test_a_density_without_its_norm_is_seen() -> None:
    class Unnormalized(dist.Normal):  # type: ignore[misc]
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) + 0.1 * self.loc.square()  # type: ignore[no-any-return]

    class Wrong(GaussianRegression):
        def distribution(self, logits: Tensor) -> TorchDistributionMixin:
            return Unnormalized(logits, self.noise_scale).to_event(1)

    assert mean_score(Wrong(1.0)).abs().max() > 5


@KINDS
def test_labels_of_other_rows_are_refused(likelihood: Likelihood) -> None:
    logits = logits_of(likelihood, NUM_ROWS + 1)
    labels = labels_for(likelihood, logits)
    with pytest.raises(LikelihoodError, match="labels"):
        likelihood.checked_labels(logits[:-1], labels)


@KINDS
def test_what_is_predicted(likelihood: Likelihood) -> None:
    logits = logits_of(likelihood, 4, NUM_ROWS)
    labels = labels_for(likelihood, logits[0])
    prediction = likelihood.prediction(logits, labels)
    metrics = likelihood.metrics(prediction)
    # The predictive averages densities over draws, not their logarithms.
    densities = likelihood.log_density(logits, labels).detach().exp().mean(0)
    assert metrics["nll"] == pytest.approx(-float(densities.log().sum()) / likelihood.num_observations(labels))
    torch.testing.assert_close(likelihood.log_predictive_density(logits, labels), densities.log())
    assert likelihood.metrics(likelihood.of_summary(likelihood.summary(prediction), labels)) == pytest.approx(metrics)
    assert likelihood.prediction(logits, None).labels is None


def network_for(likelihood: Likelihood) -> Any:
    """A network that it takes, with LoRA."""
    torch.manual_seed(0)
    if "option_ids" in likelihood.batch_columns:
        return peft.get_peft_model(build_llama(), peft.LoraConfig(target_modules=["q_proj"])).double()
    bert: Any = build_bert(num_labels=OTHERS.get(likelihood.kind, (None, NUM_OUTPUTS))[1])
    if likelihood.row_dims == 2:
        bert = BertForTokenClassification(bert.config)
    return peft.get_peft_model(bert, peft.LoraConfig(target_modules=["query"])).double()


@KINDS
def test_it_trains_and_predicts(likelihood: Likelihood, tmp_path: Path) -> None:
    batch: dict[str, Any] = make_batch()
    for column in likelihood.batch_columns:
        batch[column] = torch.tensor([[5, 6, 7]] * NUM_ROWS).unsqueeze(-1)
    model = BayesianLoRA(network_for(likelihood), bl.MonteCLoRAConfig(), likelihood)
    guide = MonteCLoRAGuide(model)
    with torch.no_grad():
        batch["labels"] = poutine.trace(model).get_trace(**{**batch, "labels": None}).nodes["y"]["value"]
    rows = [{name: values[row] for name, values in batch.items()} for row in range(NUM_ROWS)]
    (entry,) = fit(model, guide, rows, FitOptions(epochs=1, batch_size=NUM_ROWS)).history
    assert entry["nll"] > 0
    prediction = predict(model, guide, [batch], num_samples=3)
    options = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = SVITrainer(model, guide, options, eval_dataset=rows, num_samples=3)
    evaluated = trainer.evaluate()
    for name, value in likelihood.metrics(prediction).items():
        assert evaluated[f"eval_{name}"] == pytest.approx(value, rel=1e-5), name
        assert f"eval_point_{name}" in evaluated
    assert evaluated["eval_loss"] == pytest.approx(evaluated["eval_nll"], rel=1e-5)


@KINDS
def test_the_density_of_each_draw(likelihood: Likelihood) -> None:
    prediction = predicted(likelihood)
    found = likelihood.draw_log_density(prediction)
    assert found.shape == (4, 40)
    expected = likelihood.log_density(logits_of(likelihood, 4, 40), prediction.labels)
    torch.testing.assert_close(found, expected.detach())
    row_density = likelihood.row_log_density(prediction)
    torch.testing.assert_close(found.exp().mean(0).log(), row_density.detach())


@KINDS
def test_labels_are_drawn_as_their_density_says(likelihood: Likelihood) -> None:
    """E d/dlogits log p(y | logits) = 0 at labels drawn under these logits, and not at those of other ones."""
    logits = torch.cat([logits_of(likelihood, 1, NUM_ROWS), -logits_of(likelihood, 1, NUM_ROWS)])
    with torch.no_grad():
        prediction = likelihood.prediction(logits, None)
    generator = torch.Generator().manual_seed(0)
    labels = likelihood.replicated(prediction, 0, 4000, generator)
    if labels is None:
        assert likelihood.texts(prediction) is not None  # of which probabilities are gone
        return
    assert labels.shape[:2] == (4000, NUM_ROWS)

    def scores(draw: int) -> Tensor:
        repeated = logits[draw].repeat(4000, *[1] * likelihood.row_dims).requires_grad_()
        density = likelihood.log_density(repeated, labels.flatten(0, 1))
        (score,) = torch.autograd.grad(density.sum(), repeated)
        return deviation(score.reshape(4000, -1), 0.0)

    assert scores(0).abs().max() < 5
    assert scores(1).abs().max() > 10
    # The generator decides, and nothing global moves.
    state = torch.get_rng_state()
    again = likelihood.replicated(prediction, 0, 4000, torch.Generator().manual_seed(0))
    assert again is not None
    assert torch.equal(again, labels)
    assert torch.equal(torch.get_rng_state(), state)
    statistics = likelihood.label_statistics(prediction, labels)
    assert all(values.shape == (4000,) for values in statistics.values())


def predicted(likelihood: Likelihood, num_samples: int = 4) -> Any:
    logits = logits_of(likelihood, num_samples, 40)
    with torch.no_grad():
        return likelihood.prediction(logits, labels_for(likelihood, logits[0]))


@KINDS
def test_a_packed_prediction_is_the_prediction(likelihood: Likelihood) -> None:
    prediction = predicted(likelihood)
    packed = likelihood.pack(prediction)
    again = likelihood.unpack(packed, prediction.labels)
    assert likelihood.metrics(again) == pytest.approx(likelihood.metrics(prediction), rel=1e-12)
    assert torch.equal(likelihood.pack(again), packed)
    # Another likelihood of the kind, which has learned nothing, reads it as well.
    build, _ = OTHERS.get(likelihood.kind, (lambda: type(likelihood).from_settings(nn.Identity(), {}), 0))
    other = build().unpack(packed, prediction.labels)
    assert likelihood.metrics(other)["nll"] == pytest.approx(likelihood.metrics(prediction)["nll"], rel=1e-12)


@KINDS
def test_losses_are_what_metrics_are_the_means_of(likelihood: Likelihood) -> None:
    prediction = predicted(likelihood)
    metrics, losses = likelihood.all_metrics(prediction), likelihood.losses(prediction)
    assert "nll" in losses
    for name, values in losses.items():
        assert values.shape == (40,)
        assert float(values.mean()) == pytest.approx(metrics[name], rel=1e-9), name


@KINDS
def test_uncertainties_tell_rows_that_are_less_sure(likelihood: Likelihood) -> None:
    prediction = predicted(likelihood)
    outside = likelihood.prediction(logits_of(likelihood, 4, 30), None)
    for name, values in likelihood.uncertainty(prediction).items():
        assert values.shape == (40,)
        assert 0 <= likelihood.all_metrics(prediction, outside)[f"ood_auroc_{name}"] <= 1
        assert likelihood.all_metrics(prediction, prediction)[f"ood_auroc_{name}"] == pytest.approx(0.5)


@KINDS
@pytest.mark.parametrize("num_samples", [1, 4])
def test_the_fitted_temperature_has_the_least_nll(likelihood: Likelihood, num_samples: int) -> None:
    prediction = predicted(likelihood, num_samples)
    if type(likelihood).rescaled is Likelihood.rescaled:
        with pytest.raises(LikelihoodError, match=f"{type(likelihood).__name__} does not say what a temperature does"):
            fit_temperature(prediction, likelihood)
        return

    def nll(temperature: float) -> float:
        return float(likelihood.losses(likelihood.rescaled(prediction, temperature))["nll"].mean())

    found = fit_temperature(prediction, likelihood)
    assert 1e-3 < found < 1e3
    least = nll(found)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert nll(found * factor) > least
    # At 1 the predictive is what it was; of one sample the prediction is, too.
    if num_samples == 1:
        same = likelihood.rescaled(prediction, 1.0)
        assert likelihood.metrics(same) == pytest.approx(likelihood.metrics(prediction), rel=1e-9)
    scaled = TemperatureScaled(lambda loader, **_: prediction, found, likelihood)([])
    assert float(likelihood.losses(scaled)["nll"].mean()) == pytest.approx(least, rel=1e-12)


@KINDS
def test_a_temperature_makes_less_sure(likelihood: Likelihood) -> None:
    prediction = predicted(likelihood)
    if type(likelihood).rescaled is Likelihood.rescaled:
        return  # as the test above holds
    sure, unsure = (likelihood.rescaled(prediction, temperature) for temperature in (0.5, 2.0))
    for values, others in zip(
        likelihood.uncertainty(sure).values(), likelihood.uncertainty(unsure).values(), strict=True
    ):
        assert (values <= others + 1e-12).all()
