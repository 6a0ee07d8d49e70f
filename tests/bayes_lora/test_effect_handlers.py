"""The handler of a site against Pyro's own plates and scales, and what is sent to whom."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from bayes_lora.effect_handlers import SiteHandler
from bayes_lora.inference import ItemizedELBO
from bayes_lora.inference.training.itemized_elbo import _Recorder
from tests.networks import Batch, build_network, build_pair


def site(*handlers: Any) -> dict[str, Any]:
    with poutine.trace() as recorder, pyro.plate("around", 4, dim=-3), poutine.scale(scale=3.0):
        for handler in handlers:
            handler.__enter__()
        pyro.sample("x", dist.Normal(torch.zeros(4, 2, 5), 1.0))
        for handler in reversed(handlers):
            handler.__exit__(None, None, None)
    return dict(recorder.trace.nodes["x"])


def test_one_handler_says_what_plates_and_scale_say() -> None:
    expected = site(poutine.scale(scale=0.25), pyro.plate("left", 2, dim=-2), pyro.plate("right", 5, dim=-1))
    found = site(SiteHandler({"left": 2, "right": 5}, 0.25))
    assert found["cond_indep_stack"] == expected["cond_indep_stack"]
    assert found["scale"] == expected["scale"] == 0.75
    assert site(SiteHandler({"right": 2, "left": 5}, 0.25))["cond_indep_stack"] != expected["cond_indep_stack"]


def test_no_weight_is_a_mask() -> None:
    assert site(SiteHandler({"left": 2, "right": 5}, 0.0))["mask"] is False


@pytest.mark.parametrize("recorder", [poutine.trace, _Recorder])
def test_what_carries_no_density_is_sent_to_those_who_listen(batch: Batch, recorder: Any) -> None:
    model, _ = build_pair(build_network(num_layers=1))
    with recorder() as recording:
        model(**batch)
    kinds = {name: node["type"] for name, node in recording.trace.nodes.items()}
    listens = recorder is poutine.trace
    assert ("logits" in kinds) == ("param" in kinds.values()) == listens
    assert {"pi", "Sigma_r4", "S_r4_n16", "cooperative", "y"} <= kinds.keys()


def test_an_outer_listener_hears_everything(batch: Batch) -> None:
    model, guide = build_pair(build_network(num_layers=1))
    with poutine.trace(param_only=True) as outside:  # as SVI.step does, to learn what there is to optimize
        ItemizedELBO().differentiable_loss(model, guide, **batch)
    wanted = {"network." + name for name, value in model.network.named_parameters() if value.requires_grad}
    assert wanted < outside.trace.nodes.keys()
    assert "concentration" in outside.trace.nodes


def test_the_prior_is_made_once_and_outlives_inference_mode(batch: Batch) -> None:
    model, guide = build_pair(build_network(num_layers=1))
    with torch.inference_mode(), poutine.block():
        model.sample_latents()  # the first to need the prior
    first = model._prior()
    ItemizedELBO().differentiable_loss(model, guide, **batch).backward()
    assert model._prior() is first
    model.float()
    assert model._prior()[0].concentration.dtype == torch.float32


@pytest.mark.parametrize("kind", [TraceMeanField_ELBO, Trace_ELBO])
def test_parameters_are_announced_to_those_who_may_look_at_them(batch: Batch, kind: Any) -> None:
    """Not within an ELBO's own traces; but to SVI's capture around it, to a trace of one's own, and to handlers that
    nobody knows."""
    model, guide = build_pair(build_network(num_layers=1))
    network = {"network." + name for name, p in model.network.named_parameters() if p.requires_grad}

    class Listener(poutine.messenger.Messenger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.heard: set[str] = set()

        def _pyro_param(self, message: Any) -> None:
            self.heard.add(message["name"])

    trace = poutine.trace(model).get_trace(**batch)
    assert network <= set(trace.nodes)
    with poutine.trace(param_only=True) as capture:
        kind().loss(model, guide, **batch)
    assert network <= set(capture.trace.nodes)
    with Listener() as listener:
        kind().loss(model, guide, **batch)
    assert network <= listener.heard
    model_trace, _ = next(iter(_traces(kind, model, guide, batch)))
    assert not network & set(model_trace.nodes)
    assert {"pi", "y"} <= set(model_trace.nodes)


def _traces(kind: Any, model: Any, guide: Any, batch: Batch) -> Any:
    """Those that a loss makes of an ELBO."""
    elbo, found = kind(), []
    traces = elbo._get_traces

    def kept(*args: Any) -> Any:
        for pair in traces(*args):
            found.append(pair)
            yield pair

    elbo._get_traces = kept
    elbo.loss(model, guide, **batch)
    return found
