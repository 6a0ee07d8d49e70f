"""Pyro's autoguides over LoRA-A: the weight of the model's sites, any ELBO, training and prediction like any guide."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch.distributions import Normal
from transformers import TrainingArguments

import bayes_lora as bl
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import FitOptions, ItemizedELBO, SVITrainer, fit, predict
from bayes_lora.inference.guides.autoguides import AutoAdapterGuide, adapters_only, autoguide
from bayes_lora.inference.guides.mean_field import MeanFieldGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, learnable_rows

ELBO: dict[str, Any] = {"objective": "elbo", "num_train_examples": 70, "kl_temperature": 0.3, "prior_scale": 0.6}
FACTORIES = [AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoDelta]
GAUSSIANS = FACTORIES[:-1]


def build(factory: Any = AutoNormal, network: Any = None, **options: Any) -> tuple[BayesianLoRA, AutoAdapterGuide]:
    """Two ranks, so that the sites of A and Sigma alternate in the model."""
    if network is None:
        network = build_network(num_layers=1, rank_pattern={"value": 2})
    model = BayesianLoRA(network, bl.MonteCLoRAConfig(**ELBO, sample_scale=0.05))
    return model, autoguide(model, factory, **options)


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_elbo_gives_the_loss_of_the_draw(batch: Batch, factory: Any) -> None:
    """NLL + temperature / n (ln q(A) - ln p(A)), with ln q asked of the autoguide itself and ln p of torch."""
    model, guide = build(factory)
    torch.manual_seed(4)
    drawn = poutine.trace(guide).get_trace()
    torch.manual_seed(4)
    with pyro.settings.context(module_local_params=True), poutine.block():
        alone = poutine.trace(guide.auto).get_trace()
    values = {name: drawn.nodes[name]["value"] for name in ("A_r2_n16", "A_r4_n16")}
    assert all(torch.equal(alone.nodes[name]["value"], value) for name, value in values.items())
    prior = sum(Normal(0, 0.6).log_prob(value).sum() for value in values.values())
    with torch.no_grad(), poutine.block():
        logits = poutine.replay(model, trace=drawn)(**batch)
    nll = torch.nn.functional.cross_entropy(logits, batch["labels"])
    expected = (nll + 0.3 / 70 * (alone.log_prob_sum() - prior)).item()
    for elbo in (ItemizedELBO(), TraceMeanField_ELBO(), Trace_ELBO()):
        torch.manual_seed(4)
        assert elbo.loss(model, guide, **batch) == pytest.approx(expected, rel=1e-6)


def test_the_kl_is_that_of_the_mean_field_guide(batch: Batch) -> None:
    """AutoNormal and MeanFieldGuide are one posterior at their start, so their losses have one expectation."""
    model, auto = build(AutoNormal, init_scale=0.1)
    mean_field = MeanFieldGuide(model, init_scale=0.1)
    losses = []
    for guide in (auto, mean_field):
        elbo, terms = ItemizedELBO(), []
        for seed in range(60 if guide is auto else 2):
            torch.manual_seed(seed)
            elbo.loss(model, guide, **batch)
            terms.append(elbo.terms["kl_normal"].item())
        losses.append(np.array(terms))
    assert np.ptp(losses[1]) < 1e-9  # in closed form
    error = losses[0].std(ddof=1) / math.sqrt(len(losses[0]))
    assert abs(losses[0].mean() - losses[1][0]) < 4 * error
    # The weight of a bare autoguide would be another: hundreds of errors away.
    assert abs(losses[0].mean() * 70 / 0.3 - losses[1][0]) > 100 * error


def test_only_the_models_own_sites_are_seen(batch: Batch) -> None:
    model, guide = build(AutoLowRankMultivariateNormal, rank=2)
    names = [
        [name for name, site in poutine.trace(fn).get_trace(**batch).nodes.items() if site["type"] == "sample"]
        for fn in (model, guide)
    ]
    assert names[1] == ["pi", "Sigma_r2", "A_r2_n16", "Sigma_r4", "A_r4_n16"]
    assert names[0] == [*names[1], "logits", "y"]
    with poutine.trace() as recorded:
        adapters_only(model)()
    assert recorded.trace.stochastic_nodes == ["A_r2_n16", "A_r4_n16"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_it_starts_at_lora(batch: Batch, factory: Any) -> None:
    model, guide = build(factory, **({} if factory is AutoDelta else {"init_scale": 1e-7}))
    noisy = predict(model, guide, [batch], num_samples=3)
    mean = predict(model, guide, [batch], at_mean=True)
    torch.testing.assert_close(noisy.logits, mean.logits.expand(3, -1, -1), rtol=0, atol=1e-5)
    for group in model.sites.groups:
        torch.testing.assert_close(guide.median()[model.sites.column_site(group)], model.sites.means(group))


@pytest.mark.parametrize("factory", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_its_spread_is_init_scale(factory: Any) -> None:
    for init_scale, expected in ((None, 0.05), (0.2, 0.2)):
        model, guide = build(factory, init_scale=init_scale)
        draws = torch.cat([guide().columns[0].flatten() for _ in range(20)]).detach()
        centred = draws - model.sites.means(model.sites.groups[0]).detach().flatten().repeat(20)
        assert abs(centred.square().mean().sqrt().item() / expected - 1) < 4 / math.sqrt(2 * len(draws))


@pytest.mark.parametrize("elbo", [ItemizedELBO(), TraceMeanField_ELBO(), Trace_ELBO()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("factory", FACTORIES)
def test_svi_trains_the_guide_and_the_rest_of_the_network(batch: Batch, factory: Any, elbo: Any) -> None:
    model, guide = build(factory)
    before = {name: p.detach().clone() for m in (model, guide) for name, p in m.named_parameters()}
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), elbo)
    losses = [svi.step(**batch) for _ in range(8)]
    assert losses[-1] < losses[0]
    after = {name: p for m in (model, guide) for name, p in m.named_parameters()}
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name, parameter in after.items() if parameter.requires_grad}
    assert not any("lora_A" in name for name in moved)
    assert any("lora_B" in name for name in moved)


@pytest.mark.parametrize("factory", [AutoNormal, partial(AutoLowRankMultivariateNormal, rank=3)])
def test_fit_learns(factory: Any) -> None:
    network = build_network(num_layers=1, target_modules=["query", "value", "dense"])
    config = {**ELBO, "num_train_examples": 48, "kl_temperature": 1e-3}
    model = BayesianLoRA(network, bl.MonteCLoRAConfig(**config))
    guide = autoguide(model, factory, init_scale=1e-3)
    options = FitOptions(epochs=8, batch_size=8, learning_rate=3e-2, log_every=6)
    rows = learnable_rows()
    history = fit(model, guide, rows, options).history
    assert history[-1]["nll"] < history[0]["nll"] / 2
    # LoRA-A is where it was until the guide's centre is put there.
    loader = [{name: torch.tensor([row[name] for row in rows]) for name in rows[0]}]
    noisy, stale = predict(model, guide, loader, num_samples=4), predict(model, guide, loader, at_mean=True)
    guide.copy_median_to_adapters()
    centre = predict(model, guide, loader, at_mean=True)
    assert not torch.allclose(centre.logits, stale.logits, atol=0.1)
    torch.testing.assert_close(predict(model, guide, loader, num_samples=4).logits, noisy.logits)
    for group in model.sites.groups:
        assert torch.equal(model.sites.means(group), guide.median()[model.sites.column_site(group)])


def test_the_trainer_takes_it(tmp_path: Path) -> None:
    model, guide = build(AutoDiagonalNormal)
    model.set_num_train_examples(16)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    rows = learnable_rows(16)
    trainer = SVITrainer(model, guide, arguments, train_dataset=rows, eval_dataset=rows[:8], num_samples=2)
    trainer.train()
    assert "eval_nll" in trainer.evaluate()
    trained = {name: value.clone() for name, value in guide.state_dict().items()}
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.zero_()
    trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, trained[name]) for name, value in guide.state_dict().items())


def test_predictions_are_seeded_and_batches_do_not_matter(batch: Batch) -> None:
    model, guide = build(AutoLowRankMultivariateNormal, init_scale=0.3)
    state = torch.get_rng_state()
    whole = predict(model, guide, [batch], num_samples=4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in ([0, 1], [2, 3, 4])]
    torch.testing.assert_close(predict(model, guide, parts, num_samples=4, seed=1).logits, whole.logits)
    assert not torch.allclose(predict(model, guide, [batch], num_samples=4, seed=2).logits, whole.logits)
    assert whole.logits.std(0).min() > 1e-5


def test_a_guide_of_another_model_is_refused(batch: Batch) -> None:
    model, _ = build()
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        predict(model, build()[1], [batch])


def test_a_state_dict_carries_it_over(batch: Batch) -> None:
    model, guide = build(AutoLowRankMultivariateNormal, init_scale=0.3)
    other = autoguide(model, AutoLowRankMultivariateNormal)
    assert not torch.equal(predict(model, other, [batch]).logits, predict(model, guide, [batch]).logits)
    other.load_state_dict(guide.state_dict())
    assert torch.equal(predict(model, other, [batch]).logits, predict(model, guide, [batch]).logits)


@pytest.mark.parametrize("factory", GAUSSIANS)
def test_stays_in_full_precision(factory: Any, batch: Batch) -> None:
    model, guide = build(factory, build_network(num_layers=1, dtype=torch.float32))
    model.to(torch.bfloat16)
    guide.to(torch.bfloat16)
    assert {parameter.dtype for parameter in guide.parameters()} == {torch.float32}
    assert torch.isfinite(predict(model, guide, [batch], num_samples=2).logits).all()


def test_errors() -> None:
    model = BayesianLoRA(build_network(num_layers=1), bl.MonteCLoRAConfig(**ELBO))
    with pytest.raises(ConfigurationError, match=r"AutoIAFNormal cannot start at given values.*Use AutoNormal"):
        autoguide(model, AutoIAFNormal)
    with pytest.raises(ConfigurationError, match=r"AutoLaplaceApproximation takes the Hessian.*Use AutoDelta"):
        autoguide(model, AutoLaplaceApproximation)
    with pytest.raises(ConfigurationError, match="AutoDelta has no init_scale"):
        autoguide(model, AutoDelta, init_scale=0.1)
    with pytest.raises(ConfigurationError, match="init_scale=-1 must be positive"):
        autoguide(model, AutoNormal, init_scale=-1)
    # Nothing was frozen on the way to an error.
    assert all(adapter.linear.weight.requires_grad for adapter in model.sites.adapters)
    paper = BayesianLoRA(build_network(), bl.MonteCLoRAConfig())
    with pytest.raises(ConfigurationError, match="AutoAdapterGuide is a posterior over A itself"):
        autoguide(paper, AutoNormal)
