"""How the sample scale moves: its formulas by hand, under the Trainer, over processes' ends and in saved files."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from bayes_lora.choices import ScaleScheduleKind
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import FitOptions, SampleScaleSchedule, SVITrainer, fit, load_posterior, save_posterior
from tests.inference.training.test_trainer import arguments
from tests.networks import build_network, build_pair, learnable_rows

KINDS: list[ScaleScheduleKind] = ["constant", "linear", "cosine", "entropy", "loss"]
EPS = 0.2


def pair() -> Any:
    return build_pair(build_network(num_layers=1), sample_scale=EPS, kl_weight=0.01)


def scale_at(schedule: SampleScaleSchedule, progress: float) -> float:
    model, _ = pair()
    schedule.apply_to(model, progress)
    assert model.sample_scale.unique().numel() == 1
    return float(model.sample_scale[0]) / EPS


def test_risen_by_the_clock() -> None:
    for progress in (0.0, 0.1, 0.25, 0.4, 0.7, 1.0):
        assert scale_at(SampleScaleSchedule(), progress) == pytest.approx(1)
        part = min(1.0, progress / 0.4)
        linear = SampleScaleSchedule("linear", warmup=0.4)
        assert scale_at(linear, progress) == pytest.approx(0.01 + 0.99 * part, rel=1e-6)
        cosine = SampleScaleSchedule("cosine", warmup=0.4)
        assert scale_at(cosine, progress) == pytest.approx(0.01 + 0.99 * math.sin(math.pi * part / 2) ** 2, rel=1e-6)


@pytest.mark.parametrize("kind", ["entropy", "loss"])
def test_driven_by_what_the_network_knows(kind: ScaleScheduleKind) -> None:
    schedule = SampleScaleSchedule(kind)
    assert scale_at(schedule, 0.5) == pytest.approx(0.01)
    # Logits of (p, rest alike), so that entropy and loss are known; the mean of the past weighs .9 of the next.
    seen = []
    for probability in (1 / 3, 0.5, 0.9, 0.6):
        rest = (1 - probability) / 2
        logits = torch.tensor([[probability, rest, rest]]).log()
        entropy = -(probability * math.log(probability) + 2 * rest * math.log(rest))
        nll = -math.log(probability)
        schedule.observe(logits, torch.tensor(nll))
        seen.append((entropy if kind == "entropy" else nll) / math.log(3))
    weights = [0.9**age for age in range(len(seen) - 1, -1, -1)]
    mean = sum(w * s for w, s in zip(weights, seen, strict=True)) / sum(weights)
    assert scale_at(schedule, 0.5) == pytest.approx(0.01 + 0.99 * (1 - mean), rel=1e-5)


def test_worse_than_a_guess_leaves_the_least_noise() -> None:
    schedule = SampleScaleSchedule("loss")
    schedule.observe(torch.zeros(2, 3), torch.tensor(5.0))
    assert scale_at(schedule, 1.0) == pytest.approx(0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_per_adapter_the_noise_is_the_same_part_of_every_mean(kind: ScaleScheduleKind) -> None:
    model, _ = pair()
    with torch.no_grad():
        for factor, adapter in enumerate(model.sites.adapters, start=1):
            adapter.linear.weight.mul_(factor)
    schedule = SampleScaleSchedule(kind, per_adapter=True)
    schedule.observe(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor(0.3))
    whole = SampleScaleSchedule(kind)
    whole.load_state_dict(schedule.state_dict())
    schedule.apply_to(model, 0.3)
    sizes = torch.stack([adapter.linear.weight.square().mean().sqrt() for adapter in model.sites.adapters])
    relative = model.sample_scale / sizes
    torch.testing.assert_close(relative, relative[:1].expand_as(relative))
    torch.testing.assert_close(float(model.sample_scale.mean()), EPS * scale_at(whole, 0.3))


class Scales(TrainerCallback):
    """Keeps the scale of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found.append(float(model.model.sample_scale[0]) / EPS)


def trainer(folder: Path, schedule: SampleScaleSchedule, **options: Any) -> tuple[SVITrainer, Scales]:
    network = build_network(num_layers=1, dropout=0.1, target_modules=["query", "value", "dense"])
    model, guide = build_pair(network, sample_scale=EPS, kl_weight=0.01)
    scales = Scales()
    rows: Any = learnable_rows()
    keywords = {"train_dataset": rows, "eval_dataset": rows[:8], "num_samples": 2, "callbacks": [scales]}
    return SVITrainer(model, guide, arguments(folder, **options), scale_schedule=schedule, **keywords), scales


def test_under_the_trainer_it_ends_at_the_configured_scale(tmp_path: Path) -> None:
    training, scales = trainer(
        tmp_path, SampleScaleSchedule("linear", warmup=1.0), gradient_accumulation_steps=2, num_train_epochs=3
    )
    training.train()
    assert scales.found == pytest.approx([0.01 + 0.99 * step / 9 for step in range(1, 10)], rel=1e-5)


@pytest.mark.parametrize("kind", ["entropy", "loss"])
def test_under_the_trainer_the_noise_grows_as_it_learns(tmp_path: Path, kind: ScaleScheduleKind) -> None:
    training, scales = trainer(tmp_path, SampleScaleSchedule(kind), num_train_epochs=12, learning_rate=2e-2)
    training.train()
    assert scales.found[0] == pytest.approx(0.01)
    assert scales.found[-1] > 20 * scales.found[0]
    # An evaluation must not count as training.
    before = copy.deepcopy(training.svi.schedule.state_dict())  # type: ignore[union-attr]
    training.evaluate()
    assert before == training.svi.schedule.state_dict()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["linear", "entropy", "loss"])
def test_a_resumed_run_has_the_same_scales(tmp_path: Path, kind: ScaleScheduleKind) -> None:
    options = {"save_strategy": "steps", "save_steps": 4}
    whole, scales = trainer(tmp_path, SampleScaleSchedule(kind, per_adapter=True), **options)
    whole.train()
    resumed, later = trainer(tmp_path, SampleScaleSchedule(kind, per_adapter=True), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert later.found == scales.found[8:]
    first, second = whole.svi.state_dict(), resumed.svi.state_dict()
    assert first.keys() == second.keys()
    assert {"model.sample_scale", "schedule.uncertainty", "schedule.weight"} <= first.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_takes_it_and_the_saved_posterior_keeps_it(tmp_path: Path, kind: ScaleScheduleKind) -> None:
    torch.manual_seed(0)
    model, guide = build_pair(build_network(num_layers=1, modules_to_save=["classifier"]), sample_scale=EPS)
    base = copy.deepcopy(model.network)
    options = FitOptions(epochs=1, batch_size=8, scale_schedule=kind, scale_warmup=0.9, scale_per_adapter=True)
    fit(model, guide, learnable_rows(), options)
    assert not torch.equal(model.sample_scale[0], model.sample_scale[1])
    save_posterior(model, guide, tmp_path / "posterior")
    loaded, _ = load_posterior(base.unload(), tmp_path / "posterior")  # type: ignore[operator]
    assert torch.equal(loaded.sample_scale, model.sample_scale)


def test_refused() -> None:
    with pytest.raises(ConfigurationError, match="scale_schedule='sine' is none of"):
        FitOptions(scale_schedule="sine")  # type: ignore[arg-type]
    for warmup in (0.0, 1.5):
        with pytest.raises(ConfigurationError, match="scale_warmup"):
            FitOptions(scale_warmup=warmup)
