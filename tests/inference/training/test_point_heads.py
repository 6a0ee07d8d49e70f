"""Point estimates with a likelihood: trained, saved, resumed and averaged as a posterior's mean is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from bayes_lora.errors import AdapterError, ConfigurationError, LikelihoodError
from bayes_lora.inference import Ensemble, FitOptions, PointEstimate, fit, fit_network, trainable_state
from bayes_lora.inference.finetuning.point_files import load_trained, save_trained
from bayes_lora.inference.finetuning.point_networks import PointNetwork, fit_point, make_network
from bayes_lora.models import LikelihoodNetwork
from tests.heads import HEADS, build, build_base, labels_of, rows_of

SHORT = FitOptions(epochs=2, batch_size=8, learning_rate=1e-2, log_every=1, save_every=2)


def point_of(name: str, seed: int = 0) -> PointNetwork:
    torch.manual_seed(seed)
    likelihood = HEADS[name][0]()
    likelihood.start_at(labels_of(name, 24))
    head = ("classifier",)
    return make_network("lora", build_base(name).eval(), head, likelihood=likelihood, seed=seed)


def loader_of(name: str, *, labelled: bool = True) -> Any:
    rows = [dict(row) for row in rows_of(name)]
    for row in rows if not labelled else ():
        del row["labels"]
    return DataLoader(rows, batch_size=7, collate_fn=default_data_collator)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", HEADS)
def test_its_loss_is_that_of_the_model_at_its_mean(name: str) -> None:
    model, _ = build(name)
    network = LikelihoodNetwork(model.network, model.likelihood)
    batch = next(iter(loader_of(name)))
    labels = batch.pop("labels")
    logits = model.likelihood.logits(model.network, batch, labels).detach()
    batch["labels"] = labels
    density = model.likelihood.log_density(logits, batch["labels"]).detach()
    expected = -density.sum() / model.likelihood.num_observations(batch["labels"])
    assert float(network(**batch)["loss"].detach()) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_it_predicts_as_the_model_at_its_mean(name: str) -> None:
    model, _ = build(name)
    network = LikelihoodNetwork(model.network, model.likelihood)
    found = PointEstimate(network)(loader_of(name))
    with torch.no_grad():
        logits = torch.cat([model.network_logits(b) for b in loader_of(name, labelled=False)])
    expected = model.likelihood.prediction(logits.unsqueeze(0), labels_of(name, 24))
    assert model.likelihood.metrics(found) == pytest.approx(
        model.likelihood.metrics(expected), rel=1e-6
    )  # labels in batches are float32


@pytest.mark.parametrize("name", ["learned noise", "Student's t", "ordinal", "multi-label", "tokens"])
def test_trained_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    point = point_of(name)
    before = trainable_state(point.network)
    first, *_, last = fit_point(point, rows_of(name), FitOptions(epochs=8, learning_rate=1e-2, log_every=1)).history
    assert last["loss"] < first["loss"]
    moved = [key for key, value in trainable_state(point.network).items() if not torch.equal(value, before[key])]
    own = {f"likelihood.{key}" for key, _ in point.network.likelihood.named_parameters()}
    assert own <= set(moved)
    save_trained(point, tmp_path)
    torch.manual_seed(0)  # the base model is the same one
    again = load_trained(build_base(name).eval(), tmp_path)
    one, two = (PointEstimate(each.network)(loader_of(name)) for each in (point, again))
    assert torch.equal(one.logits, two.logits)
    likelihood = point.network.likelihood
    assert likelihood.metrics(one) == again.network.likelihood.metrics(two)
    torch.manual_seed(1)
    with pytest.raises(AdapterError, match="another base model"):
        load_trained(build_base(name).eval(), tmp_path)


@pytest.mark.parametrize("name", ["learned noise", "ordinal"])
def test_interrupted_it_ends_as_it_would_have(name: str, tmp_path: Path) -> None:
    whole, cut = point_of(name), point_of(name)
    fit_point(whole, rows_of(name), SHORT, checkpoints=tmp_path / "whole")
    first = FitOptions(**{**vars(SHORT), "epochs": 2})
    fit_point(cut, rows_of(name), first, checkpoints=tmp_path / "cut")
    newest = sorted((tmp_path / "cut").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[-1]
    for path in sorted(newest.iterdir()):
        path.unlink()
    newest.rmdir()
    resumed = point_of(name, seed=0)
    fit_point(resumed, rows_of(name), SHORT, checkpoints=tmp_path / "cut")
    for key, value in trainable_state(whole.network).items():
        assert torch.equal(value, trainable_state(resumed.network)[key]), key
    held = {path.name for path in (tmp_path / "whole").glob("checkpoint-*")}
    assert held, "nothing was saved, so that nothing was resumed"


@pytest.mark.parametrize("name", ["learned noise", "Student's t", "ordinal", "multi-label"])
def test_members_of_an_ensemble_keep_what_each_has_learned(name: str) -> None:
    members = [point_of(name, seed) for seed in (0, 0)]
    for member, rate in zip(members, (1e-2, 5e-2), strict=True):
        fit_point(member, rows_of(name), FitOptions(epochs=2, learning_rate=rate))
    states = [trainable_state(member.network) for member in members]
    together = Ensemble(members[0].network, states)(loader_of(name))
    apart = [PointEstimate(member.network)(loader_of(name)) for member in members]
    densities = torch.stack([density_of(name, found) for found in apart])
    expected = densities.logsumexp(0) - torch.tensor(2.0).log()
    torch.testing.assert_close(density_of(name, together), expected, rtol=1e-5, atol=1e-6)


def density_of(name: str, prediction: Any) -> Any:
    """ln p(labels) of each row."""
    likelihood = HEADS[name][0]()
    return -likelihood.losses(prediction)["nll"]


def test_the_first_of_two_phases_has_the_loss_of_the_likelihood() -> None:
    """Transformers' own is the squared error of labels as they are, far from where the network begins."""
    model, guide = build("one output")
    rows = [{**row, "labels": 50 + 3 * row["labels"]} for row in rows_of("one output")]
    labels = torch.tensor([row["labels"] for row in rows])
    model.likelihood.start_at(labels)
    options = FitOptions(**{**vars(SHORT), "phases": "means_then_posterior", "save_every": 100})
    history = fit(model, guide, rows, options).history
    at_start = 0.5 * torch.log(2 * torch.pi * labels.double().var(correction=0)) + 0.5
    assert history[0]["loss"] == pytest.approx(float(at_start), abs=0.5)


def test_what_cannot_be_is_refused() -> None:
    torch.manual_seed(0)
    network = make_network("lora", build_base("one output")).network
    with pytest.raises(LikelihoodError, match="not one class for each row"):
        PointEstimate(network)(loader_of("one output"))
    with pytest.raises(ConfigurationError, match="frozen"):
        fit_network(LikelihoodNetwork(network.requires_grad_(False), HEADS["known noise"][0]()), rows_of("known noise"))
