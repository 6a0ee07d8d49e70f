"""Model and guide under Pyro's own tools: SVI, Predictive, handlers, ELBOs as modules, copies and files."""

import copy
import io
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import Tensor, nn

from bayes_lora.distributions.wishart import cholesky_factor
from bayes_lora.errors import BayesLoRAError, UnsupportedELBOError
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, build_pair

OPTIONS: dict[str, Any] = {"kl_weight": 0.1, "sample_scale": 0.3, "num_components": 3}


def snapshot(*modules: nn.Module) -> dict[str, Tensor]:
    return {
        f"{i}.{name}": parameter.detach().clone()
        for i, module in enumerate(modules)
        for name, parameter in module.named_parameters()
    }


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def trainable(*modules: nn.Module) -> set[str]:
    named = [(f"{i}.{name}", p) for i, module in enumerate(modules) for name, p in module.named_parameters()]
    return {name for name, parameter in named if parameter.requires_grad}


def svi(model: Any, guide: Any, elbo: Any = None) -> SVI:
    return SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), elbo or TraceMeanField_ELBO())


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO(), Trace_ELBO(), ItemizedELBO()], ids=lambda e: type(e).__name__)
def test_svi_trains_everything_trainable_and_nothing_else(batch: Batch, elbo: Any) -> None:
    model, guide = build_pair(**OPTIONS)
    before = snapshot(model, guide)
    optimizer = svi(model, guide, elbo)
    losses = [optimizer.step(**batch) for _ in range(2)]
    assert all(isinstance(loss, float) for loss in losses)
    assert moved(before, snapshot(model, guide)) == trainable(model, guide)
    assert optimizer.evaluate_loss(**batch) > 0


def test_svi_under_the_users_own_setting(batch: Batch) -> None:
    with pyro.settings.context(module_local_params=True):
        model, guide = build_pair(**OPTIONS)
        before = snapshot(model, guide)
        svi(model, guide).step(**batch)
        assert pyro.settings.get("module_local_params") is True
        assert moved(before, snapshot(model, guide)) == trainable(model, guide)
    assert pyro.settings.get("module_local_params") is False


def test_svi_lowers_the_loss(batch: Batch) -> None:
    model, guide = build_pair(num_components=3, sample_scale=0.05, kl_weight=1e-3)
    optimizer = svi(model, guide)
    losses = [optimizer.step(**batch) for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("num_particles", [1, 2])
def test_elbo_as_a_module_with_a_torch_optimizer(batch: Batch, num_particles: int) -> None:
    model, guide = build_pair(**OPTIONS)
    loss_fn = TraceMeanField_ELBO(num_particles=num_particles)(model, guide)
    assert {id(p) for p in loss_fn.parameters()} == {id(p) for m in (model, guide) for p in m.parameters()}
    optimizer = torch.optim.AdamW([p for p in loss_fn.parameters() if p.requires_grad], lr=1e-2)
    before = snapshot(model, guide)
    loss_fn(**batch).backward()
    optimizer.step()
    assert moved(before, snapshot(model, guide)) == trainable(model, guide)


def test_particles_are_averaged(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    torch.manual_seed(0)
    both = TraceMeanField_ELBO(num_particles=2).loss(model, guide, **batch)
    torch.manual_seed(0)
    singles = [TraceMeanField_ELBO().loss(model, guide, **batch) for _ in range(2)]
    assert both == pytest.approx(sum(singles) / 2, rel=1e-12)
    assert singles[0] != singles[1]


@pytest.mark.parametrize("outer", [1, 2])
@pytest.mark.parametrize("sampler", ["collapsed", "explicit"])
@pytest.mark.parametrize("labelled", [True, False])
def test_predictive(batch: Batch, labelled: bool, sampler: str, outer: int) -> None:
    model, guide = build_pair(sampler=sampler, num_outer_samples=outer, **OPTIONS)
    if not labelled:
        del batch["labels"]
    samples = Predictive(model, guide=guide, num_samples=4, return_sites=("logits", "y", "_RETURN"))(**batch)
    assert samples["logits"].squeeze().shape == (4, 5, 3)
    assert torch.equal(samples["_RETURN"].squeeze(), samples["logits"].squeeze())
    assert samples["logits"].squeeze().std(0).min() > 0
    assert samples["y"].squeeze().shape == (4, 5)
    if labelled:
        assert all(torch.equal(row, batch["labels"]) for row in samples["y"].squeeze())


def test_predictive_of_the_prior(batch: Batch) -> None:
    model, _ = build_pair(**OPTIONS)
    del batch["labels"]
    samples = Predictive(model, num_samples=3)(**batch)
    assert {"pi", "Sigma_r4", "S_r4_n16", "y"} <= set(samples)
    assert samples["y"].squeeze().shape == (3, 5)


def test_predictive_from_posterior_samples(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    latents = Predictive(guide, num_samples=3)(**batch)
    samples = Predictive(model, posterior_samples=latents, return_sites=("logits",))(**batch)
    for s in range(3):
        data = {name: latents[name][s].squeeze(0) for name in ("pi", "Sigma_r4", "S_r4_n16")}
        trace = poutine.trace(poutine.condition(model, data=data)).get_trace(**batch)
        torch.testing.assert_close(samples["logits"][s].reshape(5, 3), trace.nodes["logits"]["value"])


def test_trace_and_replay(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    guide_trace = poutine.trace(guide).get_trace(**batch)
    first, second = (poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(**batch) for _ in range(2))
    for name in ("pi", "Sigma_r4", "S_r4_n16"):
        assert first.nodes[name]["value"] is guide_trace.nodes[name]["value"]
    assert torch.equal(first.nodes["logits"]["value"], second.nodes["logits"]["value"])
    assert torch.isfinite(first.log_prob_sum())
    params = {name for name, node in first.nodes.items() if node["type"] == "param"}
    assert params == {"network." + n for n, p in model.network.named_parameters() if p.requires_grad}


def test_condition(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    data = {
        "pi": torch.tensor([0.2, 0.5, 0.3], dtype=torch.double).expand(4, -1),
        "Sigma_r4": (torch.eye(4, dtype=torch.double) + 0.5).expand(4, -1, -1).contiguous(),
        "S_r4_n16": torch.zeros(4, 16, 4, dtype=torch.double),
    }
    logits = poutine.condition(model, data=data)
    expected = model.network(**batch).logits
    # S = 0: the mean network, whatever pi and Sigma are.
    torch.testing.assert_close(poutine.trace(logits).get_trace(**batch).nodes["logits"]["value"], expected)
    # In the guide a conditioned covariance has no factor of its own: S is drawn from it all the same.
    conditioned = poutine.condition(guide, data={"Sigma_r4": data["Sigma_r4"]})
    node = poutine.trace(conditioned).get_trace(**batch).nodes["S_r4_n16"]
    torch.testing.assert_close(node["fn"].scale_tril @ node["fn"].scale_tril.mT, data["Sigma_r4"])


def test_the_global_store_stays_empty_after_copies_and_clears(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    svi(model, guide).step(**batch)
    assert len(pyro.get_param_store()) == 0
    pyro.clear_param_store()
    before = snapshot(guide)
    svi(model, guide).step(**batch)
    assert moved(before, snapshot(guide)) == trainable(guide)


def test_two_models_do_not_interfere(batch: Batch) -> None:
    def run(interleaved: bool) -> dict[str, Tensor]:
        model, guide = build_pair(build_network(seed=0), **OPTIONS)
        other = build_pair(build_network(seed=7, r=2), num_components=2)
        first, second = svi(model, guide), svi(*other)
        for step in range(2):
            if interleaved:
                second.step(**batch)
            torch.manual_seed(step)
            first.step(**batch)
        return snapshot(model, guide)

    assert not moved(run(False), run(True))


@pytest.mark.parametrize(
    "elbo",
    [
        JitTrace_ELBO(),
        JitTraceMeanField_ELBO(),
        TraceEnum_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(alpha=0.5, num_particles=2),
        ReweightedWakeSleep(num_particles=2),
    ],
    ids=lambda elbo: type(elbo).__name__,
)
def test_other_elbos_are_refused_by_name(batch: Batch, elbo: Any) -> None:
    model, guide = build_pair(**OPTIONS)
    with pytest.raises(UnsupportedELBOError, match=rf"{type(elbo).__name__} is not supported.*TraceMeanField_ELBO"):
        elbo.loss_and_grads(model, guide, **batch)


@pytest.mark.parametrize("kind", [TraceMeanField_ELBO, Trace_ELBO])
def test_vectorized_particles_are_refused(batch: Batch, kind: Any) -> None:
    model, guide = build_pair(**OPTIONS)
    elbo = kind(num_particles=2, vectorize_particles=True, max_plate_nesting=4)
    with pytest.raises(UnsupportedELBOError, match=r"vectorize_particles=True.*num_particles=2"):
        elbo.loss_and_grads(model, guide, **batch)


def test_parallel_predictive_is_refused(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    with pytest.raises(UnsupportedELBOError, match="parallel=True of Predictive"):
        Predictive(model, guide=guide, num_samples=2, parallel=True)(**batch)


def test_a_users_own_elbo_is_left_alone(batch: Batch) -> None:
    class Own(TraceMeanField_ELBO):  # type: ignore[misc]
        pass

    model, guide = build_pair(**OPTIONS)
    assert Own().loss_and_grads(model, guide, **batch) > 0


def test_errors_are_errors_of_this_library() -> None:
    assert issubclass(UnsupportedELBOError, BayesLoRAError)
    assert issubclass(UnsupportedELBOError, TypeError)


def test_deepcopy_of_the_pair(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    svi(model, guide).step(**batch)
    copied_model, copied_guide = copy.deepcopy((model, guide))
    assert copied_guide.model is copied_model
    before = snapshot(model, guide)
    assert not moved(before, snapshot(copied_model, copied_guide))
    steps = []
    for pair in ((copied_model, copied_guide), (model, guide)):
        torch.manual_seed(0)
        steps.append(svi(*pair).step(**batch))
        if pair[0] is copied_model:
            assert not moved(before, snapshot(model, guide))
    assert steps[0] == steps[1]
    assert not moved(snapshot(model, guide), snapshot(copied_model, copied_guide))


def test_state_dicts_travel_through_a_file(batch: Batch, tmp_path: Path) -> None:
    model, guide = build_pair(**OPTIONS)
    svi(model, guide).step(**batch)
    torch.save({"model": model.state_dict(), "guide": guide.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh_model, fresh_guide = build_pair(build_network(seed=5), **OPTIONS)
    assert moved(snapshot(model, guide), snapshot(fresh_model, fresh_guide))
    fresh_model.load_state_dict(state["model"])
    fresh_guide.load_state_dict(state["guide"])
    assert not moved(snapshot(model, guide), snapshot(fresh_model, fresh_guide))


def test_whole_modules_travel_through_a_file(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    svi(model, guide).step(**batch)
    file = io.BytesIO()
    torch.save((model, guide), file)
    file.seek(0)
    copied_model, copied_guide = torch.load(file, weights_only=False)
    assert copied_guide.model is copied_model
    assert not moved(snapshot(model, guide), snapshot(copied_model, copied_guide))
    svi(copied_model, copied_guide).step(**batch)


def test_the_guide_does_not_hold_the_model_as_a_module(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    svi(model, guide).step(**batch)
    assert list(guide.modules()) == [guide]
    assert set(guide.state_dict()) == {"concentration_unconstrained", "scale_r4_unconstrained"}
    assert isinstance(guide, MonteCLoRAGuide)
    assert isinstance(guide.model, BayesianLoRA)


def test_the_users_parameters_carry_nothing(batch: Batch) -> None:
    model, guide = build_pair(**OPTIONS)
    svi(model, guide).step(**batch)
    poutine.trace(model).get_trace(**batch)
    for name, parameter in model.named_parameters():
        assert not vars(parameter), name


def test_predictive_in_float32_at_the_smallest_degrees_of_freedom(batch: Batch) -> None:
    # With nu = rank a covariance rounded to float32 is often not positive definite; the model must not care.
    model, guide = build_pair(build_network(dtype=torch.float32, num_layers=6, r=8), sample_scale=0.1)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    samples = Predictive(model, guide=guide, num_samples=300)(**inputs)
    covariances = samples["Sigma_r8"].reshape(-1, 8, 8)
    assert (torch.linalg.cholesky_ex(covariances).info > 0).any()  # else this test would show nothing
    # Set by hand, such a covariance is factored to within its rounding.
    factor = cholesky_factor(covariances)
    assert (factor @ factor.mT - covariances).abs().max() < 1e-4 * covariances.abs().max()
