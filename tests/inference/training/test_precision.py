"""Half precision: the network may have it, the posterior never does."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from transformers import TrainingArguments

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import (
    Ensemble,
    FitOptions,
    ItemizedELBO,
    LaplacePredictor,
    SVITrainer,
    SWAGCollector,
    SWAGPredictor,
    fit,
    fit_laplace,
    fit_network,
    trainable_state,
)
from bayes_lora.precision import mixed_precision
from tests.networks import Batch, build_network, build_pair

OPTIONS = FitOptions(epochs=4, batch_size=8, learning_rate=1e-2, log_every=1)


def rows() -> list[dict[str, Any]]:
    tokens = torch.randint(1, 50, (64, 7), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 7, "labels": int(row[0]) % 3} for row in tokens]


def losses(dtype: torch.dtype, seed: int = 0) -> list[float]:
    model, guide = build_pair(build_network(dtype=dtype, num_layers=1), sample_scale=0.2, kl_weight=0.01)
    options = FitOptions(**{**vars(OPTIONS), "seed": seed})
    return [entry["loss"] for entry in fit(model, guide, rows(), options).history]


def test_a_bfloat16_network_trains_within_the_spread_of_float32_seeds() -> None:
    spread = torch.tensor([losses(torch.float32, seed) for seed in range(5)])
    half = torch.tensor(losses(torch.bfloat16))
    assert torch.isfinite(half).all()
    # Means over quarters of training: single steps differ by which rows they see.
    quarters, half_quarters = spread.unflatten(1, (4, -1)).mean(-1), half.unflatten(0, (4, -1)).mean(-1)
    margin = 4 * quarters.std(0)
    assert ((half_quarters - quarters.mean(0)).abs() < margin).all()


def trained(precision: str) -> tuple[list[float], set[torch.dtype]]:
    model, guide = build_pair(build_network(dtype=torch.float32, num_layers=1), sample_scale=0.2, kl_weight=0.01)
    result = fit(model, guide, rows(), FitOptions(**{**vars(OPTIONS), "precision": precision}))
    return [entry["loss"] for entry in result.history], {p.dtype for m in (model, guide) for p in m.parameters()}


def test_a_fit_in_mixed_precision() -> None:
    (single, _), (mixed, dtypes) = trained("float32"), trained("bfloat16")
    assert dtypes == {torch.float32}
    assert mixed != single
    assert mixed == pytest.approx(single, rel=0.05)
    with pytest.raises(ConfigurationError, match="precision"):
        FitOptions(precision="half")  # type: ignore[arg-type]


def test_members_of_an_ensemble_differ_in_mixed_precision(batch: Batch) -> None:
    network = build_network(dtype=torch.float32)
    states = [trainable_state(network), {n: 2 * value for n, value in trainable_state(network).items()}]
    single = Ensemble(network, states)([batch]).logits
    with mixed_precision("float32", torch.device("cpu")):
        assert torch.equal(Ensemble(network, states)([batch]).logits, single)
    spread = (single[0] - single[1]).abs().max()
    for context in (mixed_precision("bfloat16", torch.device("cpu")), torch.autocast("cpu", torch.bfloat16)):
        with context:
            mixed = Ensemble(network, states)([batch]).logits
        assert 0 < (mixed - single).abs().max() < 0.1 * spread


def test_autocast_goes_on_with_what_it_cast_before(batch: Batch) -> None:
    """What members of an ensemble would be without a word to autocast's cache."""
    network = build_network(dtype=torch.float32).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = network(**batch).logits
        for tensor in trainable_state(network):
            network.get_parameter(tensor).mul_(2)
        assert torch.equal(network(**batch).logits, before)
        torch.clear_autocast_cache()
        assert not torch.equal(network(**batch).logits, before)


def test_a_network_trained_in_mixed_precision_predicts_as_if_it_had_been_loaded(batch: Batch) -> None:
    """accelerate leaves autocast around its forward, with a cache: every draw of SWAG was the first one."""
    network = build_network(dtype=torch.float32)
    collector = SWAGCollector(network, every=8)
    options = FitOptions(epochs=4, batch_size=8, learning_rate=1e-2, precision="bfloat16")
    fit_network(network, rows(), options, callbacks=[collector])
    fresh = build_network(dtype=torch.float32).eval()
    fresh.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(network(**batch).logits, fresh(**batch).logits)
    swag = collector.swag()
    with mixed_precision("bfloat16", torch.device("cpu")):
        one, other = (SWAGPredictor(net, swag)([batch], num_samples=3).logits for net in (network, fresh))
    assert torch.equal(one, other)
    assert (one.std(0) > 0).any()


def test_laplace_takes_no_part_in_autocast(batch: Batch) -> None:
    network = build_network(dtype=torch.float32)
    labelled = {**batch, "labels": torch.arange(len(batch["input_ids"])) % 3}
    exact = LaplacePredictor(network, fit_laplace(network, [labelled]))([batch], num_samples=3, seed=0)
    with mixed_precision("bfloat16", torch.device("cpu")):
        again = LaplacePredictor(network, fit_laplace(network, [labelled]))([batch], num_samples=3, seed=0)
    assert torch.equal(exact.logits, again.logits)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_posterior_stays_in_full_precision(batch: Batch, autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    model, guide = build_pair(build_network(dtype=dtype), sample_scale=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        guide_trace = poutine.trace(guide).get_trace(**batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(**batch)
        elbo = ItemizedELBO()
        elbo.loss(model, guide, **batch)
    for name in ("pi", "Sigma_r4", "S_r4_n16"):
        assert guide_trace.nodes[name]["value"].dtype == torch.float32
    assert model_trace.nodes["logits"]["value"].dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in elbo.terms.values())
    assert {parameter.dtype for parameter in guide.parameters()} == {torch.float32}


def test_the_same_draws_and_kls_with_and_without_autocast(batch: Batch) -> None:
    model, guide = build_pair(build_network(dtype=torch.float32), sample_scale=0.2, kl_weight=1.0)
    terms = []
    for enabled in (False, True):
        elbo = ItemizedELBO()
        pyro.set_rng_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            elbo.loss(model, guide, **batch)
        terms.append(elbo.terms)
    for name in ("kl_dirichlet", "kl_wishart", "kl_normal", "cooperative"):
        assert torch.equal(terms[0][name], terms[1][name]), name
    assert not torch.equal(terms[0]["nll"], terms[1]["nll"])  # the network did run in bfloat16


def test_the_trainers_bf16(tmp_path: Path) -> None:
    model, guide = build_pair(build_network(dtype=torch.float32, num_layers=1), sample_scale=0.2)
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=1,
        bf16=True,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = SVITrainer(model, guide, arguments, train_dataset=rows())
    trainer.train()
    assert all(torch.isfinite(torch.tensor(e["loss"])) for e in trainer.state.log_history if "loss" in e)
    assert {parameter.dtype for parameter in guide.parameters()} == {torch.float32}
