"""IVON: its steps by the published algorithm, what it leaves behind, runs that are interrupted, and refusals."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, default_data_collator

from bayes_lora.errors import ConfigurationError, MissingExtraError, PosteriorFileError
from bayes_lora.inference import (
    FitOptions,
    IVONOptions,
    IVONPosterior,
    IVONPredictor,
    IVONTraining,
    PointEstimate,
    fit_network,
)
from bayes_lora.models import LikelihoodNetwork, Ordinal
from bayes_lora.randomness import stream
from tests.networks import build_network, learnable_rows, make_batch
from tests.statistics import assert_mean

OPTIONS = FitOptions(epochs=2, batch_size=8, learning_rate=1e-3, save_every=3, max_grad_norm=1e9, log_every=1)
# Such that everything moves within a few steps.
QUICK = IVONOptions(learning_rate=0.1, ess=100.0, hess_init=0.5, beta2=0.9, clip_radius=0.5, weight_decay=0.01)


class Recorder(TrainerCallback):
    """Of each step: the means before it, the noise, and the gradient at the draw."""

    def __init__(self, network: nn.Module) -> None:
        self._named = [value for value in network.parameters() if value.requires_grad]
        self.means: list[Tensor] = []
        self.noises: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.rates: list[float] = []

    def flat(self) -> Tensor:
        return torch.cat([value.detach().flatten() for value in self._named])

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.means.append(self.flat())

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        """Called after IVON's."""
        self.noises.append(self.flat() - self.means[-1])

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        self.gradients.append(torch.cat([value.grad.flatten() for value in self._named if value.grad is not None]))
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        self.means.append(self.flat())


def train(network: Any, *callbacks: TrainerCallback, checkpoints: Path | None = None, **options: Any) -> IVONTraining:
    training = IVONTraining(network, QUICK)
    given = FitOptions(**{**vars(OPTIONS), **options})
    together = [training, *callbacks]
    fit_network(
        network,
        learnable_rows(),
        given,
        collate=default_data_collator,
        checkpoints=checkpoints,
        callbacks=together,
        optimizer=training.optimizer,
    )
    return training


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_each_step_is_the_published_algorithm(micro_batch_size: int | None) -> None:
    """In double precision, with the draws that it had: Shen et al. 2024, algorithm 1, line by line."""
    network = build_network(num_layers=1)
    recorder = Recorder(network)
    training = train(network, recorder, micro_batch_size=micro_batch_size)
    delta, ess = QUICK.weight_decay, QUICK.ess
    momentum, h = torch.zeros_like(recorder.means[0]), torch.full_like(recorder.means[0], QUICK.hess_init)
    assert len(recorder.noises) == 12
    for step, (mean, noise, gradient) in enumerate(
        zip(recorder.means, recorder.noises, recorder.gradients, strict=False), start=1
    ):
        h_estimate = gradient * noise * ess * (h + delta)
        momentum = QUICK.beta1 * momentum + (1 - QUICK.beta1) * gradient
        keep = QUICK.beta2
        h = keep * h + (1 - keep) * h_estimate + 0.5 * (1 - keep) ** 2 * (h - h_estimate) ** 2 / (h + delta)
        way = (momentum / (1 - QUICK.beta1**step) + delta * mean) / (h + delta)
        expected = mean - recorder.rates[step - 1] * way.clamp(-QUICK.clip_radius, QUICK.clip_radius)
        torch.testing.assert_close(recorder.means[step], expected, rtol=1e-9, atol=1e-12)
    posterior = training.posterior()
    scale = torch.cat([part.flatten() for part in posterior.scale.values()])
    torch.testing.assert_close(scale, (ess * (h + delta)).rsqrt(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.cat([part.flatten() for part in posterior.mean.values()]), recorder.means[-1])
    # The first draw has the deviation that the start says.
    assert_mean(recorder.noises[0].square().unsqueeze(1), torch.tensor([1 / (ess * (0.5 + delta))], dtype=torch.double))


def test_parameters_stay_where_they_are_and_nothing_of_the_draw_remains() -> None:
    network = build_network(num_layers=1)
    homes = {name: value.data_ptr() for name, value in network.named_parameters()}
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    train(network, epochs=1)
    assert {name: value.data_ptr() for name, value in network.named_parameters()} == homes
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in network.named_parameters() if value.requires_grad}


class Killed(BaseException):
    """As a process is that is killed: nothing catches it."""


class Kill(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            raise Killed


def test_a_resumed_training_comes_to_the_same_posterior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(build_network(num_layers=1), checkpoints=tmp_path / "whole").posterior()
    with pytest.raises(Killed):
        train(build_network(num_layers=1), Kill(), checkpoints=tmp_path / "cut")
    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    resumed = train(build_network(num_layers=1), checkpoints=tmp_path / "cut").posterior()
    for part in ("mean", "scale"):
        ours, theirs = getattr(resumed, part), getattr(whole, part)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # The package alone forgets which step it is, and so how much of the mean gradient is there.
    monkeypatch.setattr("bayes_lora.inference.training.ivon._take_step", lambda *_: None)
    forgetful = train(build_network(num_layers=1), checkpoints=tmp_path / "again").posterior()
    assert not all(torch.equal(forgetful.mean[name], whole.mean[name]) for name in whole.mean)


@pytest.fixture(scope="module")
def trained() -> tuple[Any, IVONPosterior]:
    network = build_network(num_layers=1)
    return network, train(network).posterior()


def test_at_temperature_zero_it_is_the_mean(trained: tuple[Any, IVONPosterior]) -> None:
    network, posterior = trained
    batch = make_batch()
    expected = PointEstimate(network)([batch]).logits
    cold = IVONPredictor(network, posterior, 0.0)([batch], num_samples=4)
    assert torch.equal(cold.logits, expected.expand(4, -1, -1))
    warm = IVONPredictor(network, posterior)([batch], num_samples=4)
    assert not torch.allclose(warm.logits, cold.logits, atol=1e-3)
    assert torch.equal(PointEstimate(network)([batch]).logits, expected)


def test_draws_have_the_moments_of_the_posterior(trained: tuple[Any, IVONPosterior]) -> None:
    network, posterior = trained
    name = next(name for name in posterior.mean if "lora_A" in name)
    noise = torch.stack([posterior.noise(stream(0, draw))[name].flatten() for draw in range(2000)])
    assert_mean(noise, torch.zeros_like(noise[0]))
    assert_mean(noise.square(), posterior.scale[name].flatten().square())
    found = IVONPredictor(network, posterior, 2.0, "independent")([make_batch()], num_samples=1, seed=4)
    other = build_network(num_layers=1)
    noise_of = posterior.noise(stream(4, 0))
    other.load_state_dict({key: mean + 2**0.5 * noise_of[key] for key, mean in posterior.mean.items()}, strict=False)
    torch.testing.assert_close(found.logits, PointEstimate(other)([make_batch()]).logits)


def test_its_file(trained: tuple[Any, IVONPosterior], tmp_path: Path) -> None:
    _, posterior = trained
    path = tmp_path / "ivon.safetensors"
    posterior.save(path)
    found = IVONPosterior.load(path)
    assert all(torch.equal(found.scale[name], value) for name, value in posterior.scale.items())
    assert all(torch.equal(found.noise(3)[name], value) for name, value in posterior.noise(3).items())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(PosteriorFileError, match=r"ivon\.safetensors"):
        IVONPosterior.load(path)
    with pytest.raises(PosteriorFileError, match=r"other\.safetensors"):
        IVONPosterior.load(tmp_path / "other.safetensors")


def test_refusals(trained: tuple[Any, IVONPosterior], monkeypatch: pytest.MonkeyPatch) -> None:
    network, posterior = trained
    with pytest.raises(ConfigurationError, match="temperature=-1"):
        IVONPredictor(network, posterior, -1)
    with pytest.raises(ConfigurationError, match="the posterior lacks"):
        IVONPredictor(network, IVONPosterior({}, {}))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        IVONPosterior(posterior.mean, {})
    for name in ("ess", "hess_init", "clip_radius", "learning_rate"):
        with pytest.raises(ConfigurationError, match=f"{name}=0 must be positive"):
            IVONOptions(**{name: 0})
    with pytest.raises(ConfigurationError, match="take the parameters of the Ordinal"):
        IVONTraining(LikelihoodNetwork(build_network(num_layers=1), Ordinal(3)))
    mixed: Any = build_network(num_layers=1)
    mixed.base_model.model.classifier.float()
    with pytest.raises(ConfigurationError, match="all trained parameters of one type and on one device"):
        IVONTraining(mixed)
    with pytest.raises(ConfigurationError, match="every parameter of the network is frozen"):
        IVONTraining(build_network(num_layers=1).requires_grad_(False))
    monkeypatch.setattr("bayes_lora.extras.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"IVON needs ivon, which is not installed.*bayes-lora\[ivon\]"):
        IVONTraining(network)
