"""ScalaBL: what it computes, its KL, its draws, runs that are interrupted, its file, and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from transformers import TrainerCallback, default_data_collator

from bayes_lora.adapters.finding import find_adapters
from bayes_lora.errors import ConfigurationError, LikelihoodError, PosteriorFileError, UnsupportedAdapterError
from bayes_lora.inference import FitOptions, PointEstimate, ScalaBL, ScalaBLPredictor, fit_network, trainable_state
from bayes_lora.models import LikelihoodNetwork, Ordinal
from bayes_lora.randomness import stream
from tests.networks import build_network, learnable_rows, make_batch
from tests.statistics import assert_mean

OPTIONS = FitOptions(epochs=2, batch_size=8, learning_rate=1e-2, save_every=3)


def build(**options: Any) -> ScalaBL:
    torch.manual_seed(5)
    return ScalaBL(build_network(num_layers=1), 48, **options)


def train(module: ScalaBL, *callbacks: TrainerCallback, checkpoints: Path | None = None) -> ScalaBL:
    rows = learnable_rows()
    fit_network(module, rows, OPTIONS, collate=default_data_collator, checkpoints=checkpoints, callbacks=callbacks)
    return module


@pytest.fixture(scope="module")
def trained() -> ScalaBL:
    return train(build(init_scale=0.5))


def with_scales(module: ScalaBL, scales: list[Tensor]) -> Any:
    """The obvious twin: plain LoRA with A = diag(s) V'."""
    network = build_network(num_layers=1)
    network.load_state_dict(module.network.state_dict())
    with torch.no_grad():
        for adapter, scale in zip(find_adapters(network), scales, strict=True):
            adapter.linear.weight.mul_(scale.unsqueeze(1))
    return network


def test_it_starts_at_the_network_up_to_a_rotation_and_is_plain_lora_at_its_mean(trained: ScalaBL) -> None:
    fresh = build()
    for adapter, scale in zip(find_adapters(fresh.network), fresh.scales, strict=True):
        rows = adapter.linear.weight.detach()
        torch.testing.assert_close(rows @ rows.mT, torch.eye(4, dtype=rows.dtype))
        assert (scale > 0).all()
    before = [adapter.mean.detach() for adapter in find_adapters(build_network(num_layers=1))]
    for adapter, scale, old in zip(find_adapters(fresh.network), fresh.scales, before, strict=True):
        ours = scale.detach().unsqueeze(1) * adapter.mean.detach()
        torch.testing.assert_close(ours.mT @ ours, old.mT @ old)  # A'A stays: A = U S V' without U
    batch = make_batch()
    expected = PointEstimate(with_scales(trained, [scale.detach() for scale in trained.scales]))([batch]).logits
    torch.testing.assert_close(PointEstimate(trained)([batch]).logits, expected)
    cold = ScalaBLPredictor(trained, 0.0)([batch], num_samples=4).logits
    assert torch.equal(cold, PointEstimate(trained)([batch]).logits.expand(4, -1, -1))


def test_a_draw_is_plain_lora_with_drawn_scales(trained: ScalaBL) -> None:
    batch = make_batch()
    predictor = ScalaBLPredictor(trained, 1.5, "independent")
    found = predictor([batch], num_samples=2, seed=3)
    for draw in range(2):
        noise = predictor.weights.noise(stream(3, draw))
        scales = [scale.detach() + 1.5 * noise[f"scales.{i}"] for i, scale in enumerate(trained.scales)]
        expected = PointEstimate(with_scales(trained, scales))([batch]).logits[0]
        torch.testing.assert_close(found.logits[draw], expected)
    squares = torch.stack([predictor.weights.noise(draw)["scales.0"] for draw in range(2000)]).square()
    assert_mean(squares, trained.log_deviations[0].detach().exp().square())


@pytest.mark.parametrize("prior_scale", [0.3, 1.0])
def test_the_loss_is_the_networks_at_the_draw_and_the_kl(prior_scale: float) -> None:
    module = build(prior_scale=prior_scale, kl_temperature=2.0, init_scale=0.3)
    expected = sum(
        kl_divergence(Normal(mean, log.exp()), Normal(torch.zeros_like(mean), torch.full_like(mean, prior_scale))).sum()
        for mean, log in zip(module.scales, module.log_deviations, strict=True)
    )
    torch.testing.assert_close(module.kl(), expected)
    module.train()
    torch.manual_seed(1)
    loss = module(**make_batch())["loss"]
    torch.manual_seed(1)
    drawn = [
        mean + log.exp() * torch.randn_like(log) for mean, log in zip(module.scales, module.log_deviations, strict=True)
    ]
    twin = with_scales(module, [scale.detach() for scale in drawn])
    torch.testing.assert_close(loss, twin(**make_batch()).loss + 2.0 / 48 * module.kl())
    loss.backward()
    assert all(value.grad is not None for value in module.parameters() if value.requires_grad)


class Killed(BaseException):
    """As a process is that is killed: nothing catches it."""


class Kill(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            raise Killed


def test_it_learns_and_a_resumed_training_comes_to_the_same(tmp_path: Path) -> None:
    start = trainable_state(build())
    whole = trainable_state(train(build(), checkpoints=tmp_path / "whole"))
    assert all(not torch.equal(whole[name], start[name]) for name in start)
    with pytest.raises(Killed):
        train(build(), Kill(), checkpoints=tmp_path / "cut")
    resumed = trainable_state(train(build(), checkpoints=tmp_path / "cut"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_its_file(trained: ScalaBL, tmp_path: Path) -> None:
    path = tmp_path / "scalabl.safetensors"
    trained.save(path)
    found = build().load(path)
    batch = make_batch()
    expected = ScalaBLPredictor(trained)([batch], num_samples=4)
    assert torch.equal(ScalaBLPredictor(found)([batch], num_samples=4).logits, expected.logits)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(PosteriorFileError, match=r"scalabl\.safetensors"):
        build().load(path)


def test_refusals(trained: ScalaBL, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match="ScalaBL is of plain LoRA on Linears"):
        ScalaBL(build_network(use_dora=True), 8)
    for name in ("init_scale", "prior_scale"):
        with pytest.raises(ConfigurationError, match=f"{name}=0 must be positive"):
            build(**{name: 0})
    with pytest.raises(LikelihoodError, match="or of a row's own options, and Ordinal is of neither"):
        ScalaBL(LikelihoodNetwork(build_network(num_layers=1), Ordinal(3)), 8)
    with pytest.raises(ConfigurationError, match="num_train_examples=0"):
        ScalaBL(build_network(num_layers=1), 0)
    with pytest.raises(ConfigurationError, match="deviation=-1"):
        ScalaBLPredictor(trained, -1)
    trained.save(tmp_path / "one.safetensors")
    with pytest.raises(ConfigurationError, match=r"one\.safetensors"):
        ScalaBL(build_network(num_layers=1, r=2), 48).load(tmp_path / "one.safetensors")
