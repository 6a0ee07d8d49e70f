"""Inference data: every variable against its formula, and draws that belong together."""

import random
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
import xarray as xr
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal
from torch import Tensor

from bayes_lora.errors import AdapterError, ConfigurationError, DataError, LikelihoodError
from bayes_lora.inference import FitOptions, MeanFieldGuide, MonteCLoRAGuide, autoguide, fit, predict
from bayes_lora.inference.diagnostics.arviz_bridge import group, group_names
from bayes_lora.inference.diagnostics.inference_data import to_inference_data
from bayes_lora.inference.diagnostics.latent_draws import latent_draws
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.own_sites import OwnSites
from bayes_lora.randomness import stream
from tests.networks import Batch, build_network, build_pair, make_batch
from tests.statistics import assert_mean, deviation

Pair = tuple[BayesianLoRA, MonteCLoRAGuide]

ELBO = {"objective": "elbo", "num_train_examples": 20}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "explicit, two outer draws": {"sampler": "explicit", "num_outer_samples": 2},
    "collapsed, three outer draws": {"num_outer_samples": 3},
    "sparse": {"mixture": "sparse"},
    "sparse and explicit": {"mixture": "sparse", "sampler": "explicit"},
    "elbo": ELBO,
}


def noisy_pair(**config: Any) -> Pair:
    """Three shapes of LoRA-A: rank 2 and 4, width 16 and 24."""
    network = build_network(num_layers=1, target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    return build_pair(network, sample_scale=0.3, **config)


def posterior(model: BayesianLoRA, guide: Any, *, name: str = "posterior", **options: Any) -> xr.Dataset:
    """One group, over a single batch."""
    return group(to_inference_data(model, guide, [make_batch()], **options), name)


@pytest.fixture(scope="module")
def fitted() -> tuple[BayesianLoRA, MonteCLoRAGuide, list[dict[str, float]]]:
    """A real fit of the paper's objective, alpha and v moved far, and its history."""
    torch.manual_seed(0)
    model, guide = build_pair(build_network(num_layers=1), sample_scale=0.05, kl_weight=1e-2)
    batch = make_batch()
    rows = [{name: value[i % 5] for name, value in batch.items()} for i in range(20)]
    options = FitOptions(epochs=6, batch_size=20, learning_rate=1e-2, posterior_learning_rate=0.3, log_every=1)
    return model, guide, fit(model, guide, rows, options).history


@pytest.fixture(scope="module")
def data(fitted: tuple[BayesianLoRA, MonteCLoRAGuide, list[dict[str, float]]]) -> Any:
    model, guide, history = fitted
    return to_inference_data(model, guide, [make_batch()], num_samples=400, seed=3, history=history)


# --- draws -----------------------------------------------------------------------------------------------------------


def noise_by_hand(model: BayesianLoRA, values: dict[str, Tensor], index: int) -> tuple[Tensor, Tensor]:
    """(rank, in_features) noise of one adapter and (rank,) its standard deviation given pi and Sigma, by loops."""
    config, adapter = model.config, model.sites.adapters[index]
    rank, width = adapter.rank, adapter.in_features
    eps = float(model.sample_scale[index])
    names = [found.name for found in model.sites.adapters]
    of_rank = [found.name for found in model.sites.adapters if found.rank == rank]
    of_shape = [found.name for found in model.sites.adapters if (found.rank, found.in_features) == (rank, width)]

    def outer(value: Tensor) -> list[Tensor]:
        return list(value) if config.num_outer_samples > 1 else [value]

    pis = [value[names.index(adapter.name)] for value in outer(values["pi"])]
    covariances = [value[of_rank.index(adapter.name)] for value in outer(values[f"Sigma_r{rank}"])]
    site = ("A" if config.objective == "elbo" else "S") + f"_r{rank}_n{width}"
    draws = [value[of_shape.index(adapter.name)] for value in outer(values[site])]
    noise, variance = torch.zeros(rank, width).double(), torch.zeros(rank).double()
    for pi, covariance, draw in zip(pis, covariances, draws, strict=True):
        spread = float((pi**2).sum()) if config.mixture == "dense" else 1.0
        if config.objective == "elbo":
            noise += draw.T - adapter.linear.weight
        elif config.sampler == "explicit":
            chosen = [float(k == int(pi.argmax())) for k in range(len(pi))]
            weights = pi.tolist() if config.mixture == "dense" else chosen
            noise += eps * sum(weight * part.T for weight, part in zip(weights, draw, strict=True))
        else:
            noise += eps * spread**0.5 * draw.T
        variance += eps**2 * spread * covariance.diagonal()
    return noise / len(pis), variance.sqrt() / len(pis)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_latents_and_logits_of_a_draw_belong_together(batch: Batch, config: dict[str, Any]) -> None:
    """Against one replay of the model for each draw, and the noise of each adapter by hand."""
    model, guide = noisy_pair(**config)
    names = model.sites.names
    found = to_inference_data(model, guide, [batch], num_samples=3, seed=5, adapters=names)
    draws, probs = group(found, "posterior"), group(found, "posterior_predictive")["probs"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    for draw in range(3):
        torch.manual_seed(stream(5, draw))
        with torch.no_grad():
            trace = poutine.trace(guide).get_trace()
            replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(**inputs)
        values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
        now = draws.isel(chain=0, draw=draw)
        np.testing.assert_array_equal(now["pi"], values["pi"])
        for rank in (2, 4):
            np.testing.assert_array_equal(now[f"Sigma_r{rank}"], values[f"Sigma_r{rank}"])
        expected = replayed.nodes["logits"]["value"].softmax(-1)
        np.testing.assert_allclose(probs.isel(chain=0, draw=draw), expected, rtol=1e-9)
        for index, adapter in enumerate(model.sites.adapters):
            rank, width, name = adapter.rank, adapter.in_features, adapter.name
            noise, std = (value.detach() for value in noise_by_hand(model, values, index))
            mean = adapter.linear.weight.detach()
            kept = now[f"A_r{rank}_n{width}"].sel({f"adapter_r{rank}_n{width}": name})
            np.testing.assert_allclose(kept, mean + noise, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(now["relative_noise"].sel(adapter=name), noise.norm() / mean.norm(), rtol=1e-10)
            np.testing.assert_allclose(now[f"noise_std_r{rank}"].sel({f"adapter_r{rank}": name}), std, rtol=1e-10)


def test_derived_variables_are_their_formulas(data: Any) -> None:
    for name in ("posterior", "prior"):
        found = group(data, name).isel(chain=0)
        pi, covariance = found["pi"].to_numpy(), found["Sigma_r4"].to_numpy()
        np.testing.assert_allclose(found["effective_components"], 1 / (pi**2).sum(-1), rtol=1e-12)
        np.testing.assert_allclose(found["entropy_pi"], scipy.stats.entropy(pi, axis=-1), rtol=1e-12)
        deviations = np.sqrt(np.einsum("...ii->...i", covariance))
        expected = covariance / deviations[..., None] / deviations[..., None, :]
        np.testing.assert_allclose(found["correlation_r4"], expected, rtol=1e-12)
        assert np.abs(found["correlation_r4"]).max() < 1 + 1e-12


def scaled_squares(draws: xr.Dataset, mean: Tensor, std: str) -> Tensor:
    """Squares of A - mu over the standard deviation said, (draw, rank): 1 on average."""
    noise = draws["A_r4_n16"].to_numpy()[0, :, 0] - mean.detach().numpy()
    return torch.tensor((noise / draws[std].to_numpy()[0, :, :1].swapaxes(1, 2)) ** 2).mean(-1)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_noise_std_is_the_spread_of_lora_a(config: dict[str, Any]) -> None:
    model, guide = build_pair(build_network(num_layers=1, target_modules=["query"]), sample_scale=0.3, **config)
    mean = model.sites.adapters[0].linear.weight
    learned, prior = (
        latent_draws(model, program, 300, 0, model.sites.names) for program in (guide, model.sample_latents)
    )
    assert_mean(scaled_squares(learned, mean, "noise_std_r4"), 1.0)
    # Under the prior of "elbo" A is centred at 0.
    centre = torch.zeros_like(mean) if config == ELBO else mean
    assert_mean(scaled_squares(prior, centre, "noise_std_r4"), 1.0)
    # The control: there the noise does not have Sigma's variances.
    variances = np.diagonal(prior["Sigma_r4"], axis1=-2, axis2=-1)
    variances = variances.mean(2) if "outer" in prior.dims else variances
    wrong = prior.assign(wrong=prior["noise_std_r4"] * np.sqrt(variances))
    assert deviation(scaled_squares(wrong, centre, "wrong"), 1.0).abs().max() > 4


def moments(draws: xr.Dataset) -> Tensor:
    """pi, sum pi^2 and Sigma of every draw in one row each."""
    pi, covariance = (torch.tensor(draws[name].to_numpy()[0]) for name in ("pi", "Sigma_r4"))
    return torch.cat([pi.flatten(1), pi.square().sum(-1), covariance.flatten(1)], dim=1)


def expected_moments(alpha: Tensor, nu: float, v: Tensor) -> Tensor:
    total = alpha.sum(-1, keepdim=True)
    squares = (alpha * (alpha + 1) / (total * (total + 1))).sum(-1)
    return torch.cat([(alpha / total).flatten(), squares, torch.diag_embed(nu * v).flatten()]).detach()


def test_moments_of_a_fit_are_the_closed_forms(fitted: Any, data: Any) -> None:
    _, guide, _ = fitted
    learned = expected_moments(guide.concentration, 4.0, guide.scale(4))
    start = expected_moments(torch.ones_like(guide.concentration), 4.0, torch.ones_like(guide.scale(4)))
    assert_mean(moments(group(data, "posterior")), learned)
    assert_mean(moments(group(data, "prior")), start)
    # The controls: the one is not taken for the other.
    assert deviation(moments(group(data, "posterior")), start).abs().max() > 8
    assert deviation(moments(group(data, "prior")), learned).abs().max() > 8


def test_guides_over_lora_a_alone_keep_the_prior_of_pi_and_sigma() -> None:
    model, _ = build_pair(build_network(num_layers=1, target_modules=["query"]), sample_scale=0.1, **ELBO)
    guide = MeanFieldGuide(model)
    with torch.no_grad():
        guide.scale_r4_n16_unconstrained.add_(torch.randn_like(guide.scale_r4_n16_unconstrained))
    draws = latent_draws(model, guide, 300, 0, model.sites.names)
    nu = model.sites.degrees_of_freedom[0]
    assert_mean(moments(draws), expected_moments(torch.ones(1, 4).double(), nu, torch.full((1, 4), 1 / nu).double()))
    expected = guide.deviation(model.sites.groups[0]).square().mean(-2).sqrt().detach()
    np.testing.assert_allclose(draws["noise_std_r4"][0], expected.expand(300, 1, 4), rtol=1e-12)
    assert_mean(scaled_squares(draws, model.sites.adapters[0].linear.weight, "noise_std_r4"), 1.0)


def test_joint_autoguides_have_no_standard_deviation_given_pi_and_sigma() -> None:
    model, _ = build_pair(build_network(num_layers=1, target_modules=["query"]), sample_scale=0.1, **ELBO)
    guide = autoguide(model, AutoLowRankMultivariateNormal, rank=2)
    draws = posterior(model, guide, num_samples=4, adapters=model.sites.names)
    assert "noise_std_r4" not in draws
    assert draws["A_r4_n16"].std("draw").min() > 0
    # At its own centre an autoguide without spread is the plain network.
    point = posterior(model, autoguide(model, AutoDelta), num_samples=2)
    np.testing.assert_array_equal(point["relative_noise"], np.zeros((1, 2, 1)))


def test_a_conditioned_guide_keeps_its_condition() -> None:
    model, guide = noisy_pair()
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4]).double().expand(len(model.sites.names), 4)
    draws = posterior(model, poutine.condition(guide, {"pi": pi}), num_samples=2)
    np.testing.assert_array_equal(draws["pi"][0], pi.expand(2, -1, -1))


# --- predictions -----------------------------------------------------------------------------------------------------


def test_likelihoods_are_those_of_predict(fitted: Any, data: Any, batch: Batch) -> None:
    model, guide, _ = fitted
    prediction = predict(model, guide, [batch], num_samples=400, draws="independent", seed=3)
    expected = torch.stack([prediction.logits.log_softmax(-1)[:, i, label] for i, label in enumerate(batch["labels"])])
    np.testing.assert_allclose(group(data, "log_likelihood")["y"][0], expected.T, rtol=1e-12)
    np.testing.assert_array_equal(group(data, "posterior_predictive")["probs"][0], prediction.probs)
    np.testing.assert_array_equal(group(data, "observed_data")["y"], batch["labels"])


def test_drawn_labels_have_the_probabilities_beside_them(data: Any) -> None:
    found = group(data, "posterior_predictive").isel(chain=0)
    drawn = torch.nn.functional.one_hot(torch.tensor(found["y"].to_numpy()), 3)
    probs = torch.tensor(found["probs"].to_numpy())
    assert_mean(drawn - probs, 0.0)
    # The control: labels that lean to one class.
    leaning = torch.where(torch.rand(400, 5, 1) < 0.2, torch.tensor([1, 0, 0]), drawn)
    assert deviation(leaning - probs, 0.0).abs().max() > 4


def test_rows_without_labels(batch: Batch) -> None:
    model, guide = noisy_pair()
    labelled = to_inference_data(model, guide, [batch], num_samples=2)
    del batch["labels"]
    unlabelled = to_inference_data(model, guide, [batch], num_samples=2)
    assert set(group_names(labelled)) - set(group_names(unlabelled)) == {"log_likelihood", "observed_data"}
    xr.testing.assert_identical(*(group(found, "posterior_predictive") for found in (labelled, unlabelled)))


def test_coordinates_are_names(batch: Batch) -> None:
    model, guide = noisy_pair(num_outer_samples=2)
    config: Any = model.network.config
    config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    found = to_inference_data(model, guide, [batch], num_samples=2, example_ids=list("abcde"))
    names = model.sites.names
    predictive, draws = group(found, "posterior_predictive"), group(found, "posterior")
    assert predictive["class"].to_numpy().tolist() == ["no", "maybe", "yes"]
    assert group(found, "log_likelihood")["example"].to_numpy().tolist() == list("abcde")
    assert tuple(draws["adapter"].to_numpy()) == names
    assert [*draws["adapter_r2"].to_numpy(), *draws["adapter_r4"].to_numpy()] == list(names)
    assert draws["pi"].dims == ("chain", "draw", "outer", "adapter", "component")
    assert draws["Sigma_r4"].dims == ("chain", "draw", "outer", "adapter_r4", "rank_r4", "rank_other_r4")
    assert draws["noise_std_r4"].dims == ("chain", "draw", "adapter_r4", "rank_r4")
    assert draws["component"].to_numpy().tolist() == [1, 2, 3, 4]
    assert not [name for name in draws if str(name).startswith("A_")]
    # Names that are not one for each class are no names of classes.
    config.id2label = {0: "no", 1: "no", 2: "yes"}
    numbered = posterior(model, guide, name="posterior_predictive", num_samples=2)
    assert numbered["class"].to_numpy().tolist() == [0, 1, 2]


def test_lora_a_of_named_adapters_only() -> None:
    model, guide = noisy_pair()
    name = model.sites.names[-1]
    draws = posterior(model, guide, num_samples=2, adapters=[name])
    assert [variable for variable in draws if str(variable).startswith("A_")] == ["A_r4_n24"]
    assert draws["A_r4_n24"].shape == (1, 2, 1, 4, 24)
    assert draws["adapter_r4_n24"].to_numpy().tolist() == [name]


# --- what is fixed, and the fit --------------------------------------------------------------------------------------


def test_constants(batch: Batch) -> None:
    model, guide = noisy_pair()
    model.set_sample_scale(torch.arange(1.0, 1 + len(model.sites.names)))
    found = posterior(model, guide, name="constant_data", num_samples=2)
    np.testing.assert_array_equal(found["sample_scale"], model.sample_scale)
    assert found["degrees_of_freedom"].to_numpy().tolist() == [adapter.rank for adapter in model.sites.adapters]
    assert found["in_features"].to_numpy().tolist() == [adapter.in_features for adapter in model.sites.adapters]
    assert found.attrs["objective"] == "paper"
    assert found.attrs["sample_scale"] == 0.3
    assert "prior_scale" not in found.attrs


def test_loss_terms_by_step(fitted: Any, data: Any) -> None:
    _, _, history = fitted
    found = group(data, "sample_stats")
    assert found["step"].to_numpy().tolist() == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "nll", "kl_dirichlet", "kl_wishart", "kl_normal", "cooperative", "learning_rate"):
        assert found[name].to_numpy().tolist() == [[entry[name] for entry in history]]
    # Draws are taken without taking steps for draws.
    assert data.isel(draw=slice(2))["sample_stats"].sizes["step"] == 6


def test_a_history_with_two_kinds_of_entries(batch: Batch) -> None:
    """Phases one after the other: the first trains no posterior and has no terms."""
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "nll": 1.0}]
    found = posterior(*noisy_pair(), name="sample_stats", num_samples=2, history=history)
    np.testing.assert_array_equal(found["nll"], [[np.nan, 1.0]])
    assert "sample_stats" not in group_names(to_inference_data(*noisy_pair(), [batch], num_samples=2, history=[]))


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_the_seed_decides_and_fewer_draws_are_the_first_of_many(batch: Batch) -> None:
    model, guide = noisy_pair()
    torch.manual_seed(1)
    many = to_inference_data(model, guide, [batch], num_samples=6, seed=4)
    torch.manual_seed(2)
    few, other = (to_inference_data(model, guide, [batch], num_samples=3, seed=seed) for seed in (4, 5))
    for name in ("posterior", "prior", "posterior_predictive", "log_likelihood"):
        first = group(many, name).isel(draw=slice(3))
        xr.testing.assert_allclose(group(few, name), first, rtol=1e-12)
        assert not group(few, name).equals(group(other, name))
    # The prior has draws of its own: not those of the posterior, moved.
    model, guide = build_pair(build_network(num_layers=1))
    with torch.no_grad():
        guide.concentration_unconstrained.zero_()
    same = to_inference_data(model, guide, [batch], num_samples=3)
    assert np.abs(group(same, "posterior")["pi"] - group(same, "prior")["pi"]).min() > 0


def test_everything_global_is_left_as_it_was(batch: Batch) -> None:
    model, guide = noisy_pair()
    model.train()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    to_inference_data(model, guide, [batch], num_samples=2)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not pyro.get_param_store().keys()


# --- errors ----------------------------------------------------------------------------------------------------------


def test_unknown_adapters(batch: Batch) -> None:
    with pytest.raises(AdapterError, match=r"no adapter is named 'query'\. Take names from model\.sites\.names: bert"):
        to_inference_data(*noisy_pair(), [batch], num_samples=2, adapters=["query"])


def test_ids_that_are_not_one_for_each_row(batch: Batch) -> None:
    with pytest.raises(DataError, match="there are 2 example_ids for 5 rows"):
        to_inference_data(*noisy_pair(), [batch], num_samples=2, example_ids=[1, 2])


def test_histories_without_steps(batch: Batch) -> None:
    with pytest.raises(DataError, match="has no 'step'"):
        to_inference_data(*noisy_pair(), [batch], num_samples=2, history=[{"loss": 1.0}])


def test_labels_outside_the_classes(batch: Batch) -> None:
    batch["labels"][0] = -100
    with pytest.raises(LikelihoodError, match="labels run from -100 to 2, but there are 3 classes"):
        to_inference_data(*noisy_pair(), [batch], num_samples=2)


def test_other_likelihoods(batch: Batch) -> None:
    model, guide = noisy_pair()
    model.likelihood = OwnSites(lambda logits, labels: None)
    with pytest.raises(LikelihoodError, match="likelihood of the model is a callable, OwnSites, of whose labels"):
        to_inference_data(model, guide, [batch], num_samples=2)


def test_guides_of_another_model(batch: Batch) -> None:
    with pytest.raises(ConfigurationError, match="belongs to another model"):
        to_inference_data(noisy_pair()[0], noisy_pair()[1], [batch], num_samples=2)
