"""Training on batches without labels: one error that names it, whichever ELBO; sampling labels is no training."""

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

import bayes_lora as bl
from bayes_lora.errors import LikelihoodError
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA, GaussianRegression
from tests.networks import Batch, build_network, build_pair

ELBOS = [Trace_ELBO, TraceMeanField_ELBO, ItemizedELBO]
NOTHING = "nothing to learn from: the batch has .* and no 'labels'"


def misnamed(batch: Batch, name: str) -> dict[str, Any]:
    return {(name if key == "labels" else key): value for key, value in batch.items()}


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("name", ["label", "label_ids"])
def test_labels_by_another_name(elbo: Any, name: str, batch: Batch) -> None:
    with pytest.raises(LikelihoodError, match=NOTHING):
        elbo()(*build_pair())(**misnamed(batch, name))


@pytest.mark.parametrize("elbo", ELBOS)
def test_no_labels_in_a_loop_of_pyros(elbo: Any, batch: Batch) -> None:
    batch.pop("labels")
    model, guide = build_pair()
    with pytest.raises(LikelihoodError, match=NOTHING):
        SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo()).step(**batch)


@pytest.mark.parametrize("elbo", ELBOS)
def test_another_likelihood(elbo: Any, batch: Batch) -> None:
    batch.pop("labels")
    model = BayesianLoRA(build_network(), bl.MonteCLoRAConfig(), GaussianRegression(1.0))
    with pytest.raises(LikelihoodError, match=NOTHING):
        elbo()(model, MonteCLoRAGuide(model))(**batch)


@pytest.mark.parametrize("elbo", ELBOS)
def test_labels_that_the_model_is_conditioned_on_are_observed(elbo: Any, batch: Batch) -> None:
    model, guide = build_pair()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    torch.manual_seed(0)
    expected = elbo().loss(model, guide, **batch)
    conditioned = poutine.condition(model, data={"y": batch["labels"]})
    torch.manual_seed(0)
    assert float(elbo().loss(conditioned, guide, **inputs)) == pytest.approx(expected, rel=1e-9)


def test_a_likelihood_of_ones_own_may_know_the_labels_itself(batch: Batch) -> None:
    labels = batch.pop("labels")

    def opens(logits: torch.Tensor, _: torch.Tensor | None) -> None:
        with pyro.plate("data", len(logits)):
            pyro.sample("y", pyro.distributions.Categorical(logits=logits), obs=labels)

    model = BayesianLoRA(build_network(), bl.MonteCLoRAConfig(), opens)
    assert torch.isfinite(torch.as_tensor(Trace_ELBO().loss(model, MonteCLoRAGuide(model), **batch)))


def test_labels_are_sampled_outside_of_training(batch: Batch) -> None:
    batch.pop("labels")
    model, guide = build_pair()
    drawn = Predictive(model, guide=guide, num_samples=3)(**batch)
    assert drawn["y"].shape[0] == 3
    assert "y" in poutine.trace(model).get_trace(**batch).nodes
