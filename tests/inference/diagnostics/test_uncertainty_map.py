"""The map of the uncertainty: against perturbations edited by hand, for every guide, and what it flags."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal

import bayes_lora as bl
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import MonteCLoRAGuide, Prediction, predict
from bayes_lora.inference.diagnostics import Uncertainty, uncertainty_map
from bayes_lora.inference.guides.autoguides import autoguide
from bayes_lora.inference.guides.mean_field import MeanFieldGuide
from bayes_lora.inference.guides.posterior_draw import Guide, posterior_draw
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, build_pair

CASES: list[dict[str, Any]] = [
    {},
    {"sampler": "explicit", "num_outer_samples": 2},
    {"mixture": "sparse", "sampler": "explicit"},
    {"objective": "elbo", "num_train_examples": 20},
]


def pair(num_layers: int = 2, **config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    network = build_network(num_layers=num_layers, rank_pattern={"value": 2})
    return build_pair(network, sample_scale=0.3, **config)


def by_hand(model: BayesianLoRA, guide: Guide, batch: Batch, heard: list[str], num_samples: int, seed: int) -> Any:
    """One pass per draw, with the perturbations of all but the adapters heard set to zero."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = []
    for index in range(num_samples):
        perturbations = model.perturbations(posterior_draw(model, guide, seed, index).latents)
        for group, noise in zip(model.sites.groups, perturbations, strict=True):
            for place, name in enumerate(model.sites.names[group.start : group.stop]):
                if name not in heard:
                    noise[place] = 0
        with torch.no_grad(), model.perturbed(perturbations):
            logits.append(model.network_logits(inputs))
    prediction = Prediction(torch.stack(logits))
    deviations = prediction.probs - prediction.mean_probs
    return prediction.mutual_information.mean().item(), deviations.square().mean(0).sum(-1).mean().item()


def same(found: Uncertainty, expected: tuple[float, float]) -> bool:
    return (found.mutual_information, found.variance) == pytest.approx(expected, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("config", CASES, ids=str)
def test_against_perturbations_edited_by_hand(batch: Batch, config: dict[str, Any]) -> None:
    model, guide = pair(**config)
    names = list(model.sites.names)
    found = uncertainty_map(model, guide, [batch], num_samples=3, seed=2)
    assert same(found.whole, by_hand(model, guide, batch, names, 3, 2))
    assert [part.part for part in found.parts] == names
    for part in found.parts:
        others = [name for name in names if name != part.part]
        assert same(part.without, by_hand(model, guide, batch, others, 3, 2))
        assert same(part.alone, by_hand(model, guide, batch, [part.part], 3, 2))
        assert part.without.mutual_information > 0
        share = 1 - part.without.mutual_information / found.whole.mutual_information
        assert found.falls[part.part] == pytest.approx(share)


def test_parts_and_batches(batch: Batch) -> None:
    """Layers instead of adapters; rows in batches of unequal size; the loader is gone through once."""
    model, guide = pair()
    names = list(model.sites.names)
    layers = {f"layer {i}": [name for name in names if f"layer.{i}." in name] for i in range(2)}
    rows = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 2), slice(2, 5))]
    counted: list[int] = []
    found = uncertainty_map(
        model, guide, iter(rows), num_samples=4, parts=layers, on_prediction=lambda: counted.append(1)
    )
    assert len(counted) == 2 * 5
    assert same(found.whole, by_hand(model, guide, batch, names, 4, 0))
    for i, part in enumerate(found.parts):
        assert part.part == f"layer {i}"
        assert same(part.without, by_hand(model, guide, batch, layers[f"layer {1 - i}"], 4, 0))
    # With two parts, one alone is the other ablated.
    assert found.parts[0].alone == found.parts[1].without
    assert found.parts[1].alone == found.parts[0].without


def test_the_whole_is_what_predict_gives(batch: Batch) -> None:
    model, guide = pair()
    state = torch.get_rng_state()
    model.train()
    found = uncertainty_map(model, guide, [batch], num_samples=4, seed=3, draws_per_pass=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    prediction = predict(model, guide, [batch], num_samples=4, draws="independent", seed=3)
    assert found.whole.mutual_information == pytest.approx(prediction.mutual_information.mean().item())


def test_a_silent_adapter_carries_nothing(batch: Batch) -> None:
    model, guide = pair()
    silent, loud = model.sites.adapters[0], model.sites.adapters[1]
    with torch.no_grad():
        silent.layer.lora_B[silent.key].weight.zero_()
    found = uncertainty_map(model, guide, [batch], num_samples=6)
    falls = found.falls
    assert falls[silent.name] == pytest.approx(0, abs=1e-9)
    assert abs(falls[loud.name]) > 1e-3
    assert found.parts[0].alone.mutual_information < 1e-12
    assert not found.flagged
    largest = max(falls, key=falls.__getitem__)
    assert f"{largest} carries the most of it: {falls[largest]:.0%} are gone without its noise" in found.message


def test_noise_that_reaches_no_prediction_is_flagged(batch: Batch) -> None:
    model, guide = pair(num_layers=1)
    with torch.no_grad():
        for adapter in model.sites.adapters:
            adapter.layer.lora_B[adapter.key].weight.zero_()
    found = uncertainty_map(model, guide, [batch], num_samples=3)
    assert found.flagged
    assert found.message.startswith("The draws agree on every row: the noise reaches no prediction.")


@pytest.mark.parametrize("kind", ["mean field", "low rank", "function"])
def test_any_guide(batch: Batch, kind: str) -> None:
    config = bl.MonteCLoRAConfig(objective="elbo", num_train_examples=20, sample_scale=0.3)
    model = BayesianLoRA(build_network(num_layers=1), config)

    def own() -> None:
        site = model.sites.column_site(model.sites.groups[0])
        with torch.no_grad():
            dist_of_a = dist.Normal(model.sites.means(model.sites.groups[0]), 0.4).to_event(1)
            torch.rand(1)  # takes from the generator, too
            pyro.sample(site, dist_of_a)

    guides: dict[str, Guide] = {
        "mean field": MeanFieldGuide(model, init_scale=0.3),
        "low rank": autoguide(model, AutoLowRankMultivariateNormal, init_scale=0.3, rank=2),
        "function": own,
    }
    guide = guides[kind]
    names = list(model.sites.names)
    found = uncertainty_map(model, guide, [batch], num_samples=3, seed=1)
    assert same(found.whole, by_hand(model, guide, batch, names, 3, 1))
    assert same(found.parts[0].without, by_hand(model, guide, batch, names[1:], 3, 1))
    # Attention values carry the draws' noise here, and queries next to none.
    assert found.parts[1].without.mutual_information < 0.01 * found.whole.mutual_information


def test_errors(batch: Batch) -> None:
    model, guide = pair(num_layers=1)
    with pytest.raises(ConfigurationError, match=r"num_samples=1 has no spread to divide"):
        uncertainty_map(model, guide, [batch], num_samples=1)
    with pytest.raises(ConfigurationError, match=r"parts names adapters that the model does not have: layer\.9.*value"):
        uncertainty_map(model, guide, [batch], parts={"top": ["layer.9"]})
    with pytest.raises(ConfigurationError, match=r"leaves nothing to ablate in 'top'\. Give every part at least one"):
        uncertainty_map(model, guide, [batch], parts={"top": []})
    with pytest.raises(ConfigurationError, match=r"parts=\{\} leaves nothing to ablate\."):
        uncertainty_map(model, guide, [batch], parts={})
    with pytest.raises(DataError, match="the loader has no batches"):
        uncertainty_map(model, guide, [])
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        uncertainty_map(model, pair(num_layers=1)[1], [batch])
