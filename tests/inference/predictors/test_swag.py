"""SWAG: moments against all iterates at once, draws against their covariance, runs that are interrupted."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import TrainerCallback

from bayes_lora.errors import CheckpointFileError, ConfigurationError, PosteriorFileError
from bayes_lora.inference.guides.draw_design import source
from bayes_lora.inference.predictors.ensemble import trainable_state
from bayes_lora.inference.predictors.point_estimate import PointEstimate
from bayes_lora.inference.predictors.swag import SWAG, SWAGPredictor
from bayes_lora.inference.predictors.swag_collector import SWAGCollector
from bayes_lora.inference.training.sealed_trainer import SealedTrainer
from bayes_lora.randomness import stream
from tests.inference.training.test_trainer import arguments
from tests.networks import Batch, build_bert, build_network, build_pair, learnable_rows
from tests.statistics import assert_mean, deviation

State = dict[str, Tensor]


def wander(network: nn.Module, collector: SWAGCollector, steps: int) -> list[State]:
    """Random steps, each collected; returns the iterates."""
    generator = torch.Generator().manual_seed(3)
    iterates = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
        collector.collect()
        iterates.append(trainable_state(network))
    return iterates


def collected(steps: int = 6, **options: Any) -> tuple[Any, SWAG, list[State]]:
    network = build_network(num_layers=1)
    collector = SWAGCollector(network, **options)
    iterates = wander(network, collector, steps)
    return network, collector.swag(), iterates


def same(first: SWAG, second: SWAG) -> bool:
    return first.num_iterates == second.num_iterates and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in ((getattr(first, part), getattr(second, part)) for part in ("mean", "variance", "deviations"))
    )


@pytest.mark.parametrize(("steps", "num_deviations"), [(2, 20), (7, 20), (7, 3)])
def test_moments_are_those_of_all_iterates(steps: int, num_deviations: int) -> None:
    _, swag, iterates = collected(steps, num_deviations=num_deviations, all_trainable=True)
    assert swag.num_iterates == steps
    assert swag.mean.keys() == swag.variance.keys() == swag.deviations.keys() == iterates[0].keys()
    for name in swag.mean:
        path = torch.stack([iterate[name] for iterate in iterates])  # (step, *shape)
        torch.testing.assert_close(swag.mean[name], path.mean(0))
        torch.testing.assert_close(swag.variance[name], path.square().mean(0) - path.mean(0).square())
        running = torch.stack([path[: step + 1].mean(0) for step in range(steps)])
        torch.testing.assert_close(swag.deviations[name], (path - running)[-num_deviations:])


def test_the_variance_of_iterates_close_together_is_not_lost() -> None:
    """In float32, where the paper's difference of moments would be rounding alone."""
    network = build_network(num_layers=1, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    collector = SWAGCollector(network)
    iterates = []
    for step in range(5):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1e-5 * (-1) ** step)
        collector.collect()
        iterates.append(trainable_state(network))
    naive_is_wrong = False
    for name, variance in collector.swag().variance.items():
        path = torch.stack([iterate[name] for iterate in iterates])
        exact = path.double().var(0, correction=0)
        torch.testing.assert_close(variance.double(), exact, rtol=1e-2, atol=0)
        naive = (path.square().mean(0) - path.mean(0).square()).double()
        naive_is_wrong |= not torch.allclose(naive, exact, rtol=0.5, atol=0)
    assert naive_is_wrong


def test_by_default_lora_is_drawn_and_the_head_averaged() -> None:
    _, swag, iterates = collected()
    assert all("lora_" in name for name in swag.variance)
    head = "base_model.model.classifier.modules_to_save.default.weight"
    draw = swag.draw(0)
    assert torch.equal(draw[head], swag.mean[head])
    torch.testing.assert_close(draw[head], torch.stack([iterate[head] for iterate in iterates]).mean(0))
    assert draw.keys() == iterates[0].keys()
    assert not any(torch.equal(draw[name], swag.mean[name]) for name in swag.variance)


def small_swag() -> SWAG:
    """Three entries in two tensors, so that their covariance between tensors is seen."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mean = {"a": randn(2), "b": randn(1), "head": randn(2)}
    return SWAG(mean, {"a": randn(2).square(), "b": randn(1).square()}, {"a": randn(4, 2), "b": randn(4, 1)}, 9)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_draws_have_the_covariance_of_low_rank_plus_diagonal(scale: float) -> None:
    swag = small_swag()
    draws = [swag.draw(stream(0, index), scale) for index in range(3000)]
    flat = torch.stack([torch.cat([draw["a"], draw["b"]]) for draw in draws])
    mean = torch.cat([swag.mean["a"], swag.mean["b"]])
    columns = torch.cat([swag.deviations["a"], swag.deviations["b"]], dim=1)  # (deviation, entry)
    diagonal = torch.cat([swag.variance["a"], swag.variance["b"]]).diag()
    expected = scale * (diagonal + columns.T @ columns / (4 - 1))
    products = torch.einsum("si,sj->sij", flat - mean, flat - mean)
    assert_mean(flat, mean)
    assert_mean(products, expected)
    # Divided by K, or without either part, it would be noticed.
    assert deviation(products, scale * (diagonal + columns.T @ columns / 4)).abs().max() > 4
    assert deviation(products, scale * diagonal).abs().max() > 4
    assert deviation(products, expected - scale * diagonal).abs().max() > 4


def test_the_predictor_runs_the_network_with_each_draw(batch: Batch) -> None:
    network, swag, _ = collected()
    network.train()
    before = trainable_state(network)
    prediction = SWAGPredictor(network, swag, draws="independent")([batch], num_samples=3, seed=5)
    for draw, logits in enumerate(prediction.logits):
        alone = copy.deepcopy(network)
        alone.load_state_dict(swag.draw(stream(5, draw)), strict=False)
        assert torch.equal(PointEstimate(alone)([batch]).logits[0], logits)
    after = trainable_state(network)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(module.training for module in network.modules())
    with pytest.raises(ValueError, match="input_ids"):
        SWAGPredictor(network, swag)([{"attention_mask": batch["attention_mask"]}])
    after = trainable_state(network)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_scale_0_is_the_mean_of_the_iterates(batch: Batch) -> None:
    network, swag, _ = collected()
    averaged = copy.deepcopy(network)
    averaged.load_state_dict(swag.mean, strict=False)
    found = SWAGPredictor(network, swag, scale=0.0)([batch], num_samples=2).logits
    assert torch.equal(found, PointEstimate(averaged)([batch]).logits.expand(2, -1, -1))


def test_seeds_samples_and_batches(batch: Batch) -> None:
    network, swag, _ = collected()
    predictor = SWAGPredictor(network, swag)
    state = torch.get_rng_state()
    many = predictor([batch], num_samples=6, seed=1).logits
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(predictor([batch], num_samples=2, seed=1).logits, many[:2])
    parts = [{name: value[start : start + 2] for name, value in batch.items()} for start in (0, 2, 4)]
    torch.testing.assert_close(predictor(parts, num_samples=6, seed=1).logits, many, rtol=1e-12, atol=1e-12)
    other = predictor([batch], num_samples=6, seed=2).logits
    assert not any(torch.allclose(a, b) for a in many for b in other)


def test_inside_a_bayesian_lora(batch: Batch) -> None:
    network, swag, _ = collected()
    expected = SWAGPredictor(network, swag)([batch], num_samples=2).logits
    model, _ = build_pair(network, sample_scale=0.3)
    assert torch.equal(SWAGPredictor(model.network, swag)([batch], num_samples=2).logits, expected)


def test_saved_and_loaded(tmp_path: Path, batch: Batch) -> None:
    network, swag, _ = collected()
    swag.save(tmp_path / "new" / "swag.safetensors")
    loaded = SWAG.load(tmp_path / "new" / "swag.safetensors")
    assert same(loaded, swag)
    predictions = [SWAGPredictor(network, found)([batch], num_samples=2).logits for found in (swag, loaded)]
    assert torch.equal(*predictions)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "swag.safetensors"
    small_swag().save(path)
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(PosteriorFileError, match=r"swag\.safetensors does not have the checksum it was written with"):
        SWAG.load(path)
    for content in (data[:-8], data[:50], b""):
        path.write_bytes(content)
        with pytest.raises(PosteriorFileError, match=r"swag\.safetensors cannot be read as a safetensors file"):
            SWAG.load(path)
    path.write_bytes(save({"mean/a": torch.zeros(2)}))
    with pytest.raises(PosteriorFileError, match=r"swag\.safetensors is no file that SWAG\.save wrote"):
        SWAG.load(path)
    with pytest.raises(PosteriorFileError, match=r"gone\.safetensors is missing\. Give the file that SWAG\.save wrote"):
        SWAG.load(tmp_path / "gone.safetensors")


class Recorder(TrainerCallback):
    """Keeps what is trained after every step."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.iterates: dict[int, State] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.iterates[state.global_step] = trainable_state(self.network)


def train(
    folder: Path, resume: Path | None = None, *, recorded: bool = False, save: bool = True, **options: Any
) -> tuple[SWAGCollector, dict[int, State]]:
    """Three epochs of three steps (six batches, two to a step), with a checkpoint every two steps."""
    network = build_network(num_layers=1, dropout=0.1)
    collector, recorder = SWAGCollector(network, **options), Recorder(network)
    rows: Any = learnable_rows()
    keep = {"save_strategy": "steps", "save_steps": 2} if save else {}
    trainer = SealedTrainer(
        network,
        arguments(folder, num_train_epochs=3, gradient_accumulation_steps=2, **keep),
        train_dataset=rows,
        callbacks=[collector, recorder],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return collector, recorder.iterates


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"start": 3, "every": 2}, (5, 7, 9)), ({"start": 3}, (6, 9)), ({}, (3, 6, 9)), ({"start": 2}, (3, 6, 9))],
)
def test_under_the_trainer_it_collects_when_it_should(
    tmp_path: Path, options: dict[str, Any], steps: tuple[int, ...]
) -> None:
    collector, iterates = train(tmp_path, save=False, **options)
    swag = collector.swag()
    assert swag.num_iterates == len(steps)
    for name, mean in swag.mean.items():
        torch.testing.assert_close(mean, torch.stack([iterates[step][name] for step in steps]).mean(0))
    assert not (tmp_path / "swag").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SWAG]:
    folder = tmp_path_factory.mktemp("run")
    collector, _ = train(folder, start=2, every=1)
    return folder, collector.swag()


@pytest.mark.parametrize("step", [2, 6, 8])
def test_a_resumed_run_has_the_same_moments(whole: tuple[Path, SWAG], tmp_path: Path, step: int) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)  # with iterates of later steps, as after a kill
    collector, _ = train(folder, folder / f"checkpoint-{step}", start=2, every=1)
    assert same(collector.swag(), whole[1])
    assert collector.swag().num_iterates == 7


def test_a_run_resumed_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    """The checkpoint of an epoch's last step is resumed in the next epoch, whose start does not end this one."""
    first, _ = train(tmp_path)
    resumed, _ = train(tmp_path, tmp_path / "checkpoint-6")
    assert same(resumed.swag(), first.swag())


def test_a_resumed_run_that_cannot_have_the_same_moments(whole: tuple[Path, SWAG], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    last = folder / "checkpoint-8"
    with pytest.raises(ConfigurationError, match=r"collected with start=2, every=1 before; now start=2, every=3"):
        train(folder, last, start=2, every=3)
    iterate = folder / "swag" / "step-5.safetensors"
    data = bytearray(iterate.read_bytes())
    data[-1] ^= 1
    iterate.write_bytes(data)
    with pytest.raises(CheckpointFileError, match=r"step-5\.safetensors is missing or damaged.* before step 5"):
        train(folder, last, start=2, every=1)
    train(folder, folder / "checkpoint-4", start=2, every=1)
    for content in (b"", b'{"start": 2, "every": 1, "iterates": {"x": "y"}}'):
        (folder / "swag" / "iterates.json").write_bytes(content)
        with pytest.raises(CheckpointFileError, match=r"at step 8, .* since step 2 cannot be found: .*iterates\.json"):
            train(folder, last, start=2, every=1)
    shutil.rmtree(folder / "swag")
    with pytest.raises(CheckpointFileError, match="or pass start=8"):
        train(folder, last, start=2, every=1)
    collector, _ = train(folder, last, start=8, every=1)
    assert collector.num_iterates == 1


def test_refused(batch: Batch) -> None:
    network = build_network(num_layers=1)
    refused: list[dict[str, Any]] = [{"start": -1}, {"every": 0}, {"num_deviations": 0}, {"num_deviations": 1}]
    for options in refused:
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            SWAGCollector(network, **options)
    with pytest.raises(ConfigurationError, match=r"nothing to draw\. Pass all_trainable=True"):
        SWAGCollector(build_bert())
    SWAGCollector(build_bert(), all_trainable=True)
    collector = SWAGCollector(network)
    for count in range(2):
        with pytest.raises(ConfigurationError, match=f"at least two iterates to have a covariance, and has {count}"):
            collector.swag()
        collector.collect()
    swag = collector.swag()
    with pytest.raises(ConfigurationError, match="scale=-1"):
        SWAGPredictor(network, swag, scale=-1)
    with pytest.raises(ConfigurationError, match=r"the SWAG: its '.*' has shape \(4, 16\)"):
        SWAGPredictor(build_network(num_layers=1, r=2), swag)
    with pytest.raises(ConfigurationError, match="num_samples=0"):
        SWAGPredictor(network, swag)([batch], num_samples=0)
    with pytest.raises(ConfigurationError, match="do not belong together"):
        SWAG(swag.mean, swag.variance, {name: v[:, :1] for name, v in swag.deviations.items()}, 2)


@pytest.mark.parametrize(("num_samples", "size"), [(6, 2), (8, 4)])
def test_draws_come_in_blocks_about_the_mean(batch: Batch, num_samples: int, size: int) -> None:
    """By the obvious way: the combinations of whole draws of the Gaussian about its mean."""
    network, swag, _ = collected()
    designed = SWAGPredictor(network, swag)([batch], num_samples=num_samples, seed=3)
    independent = SWAGPredictor(network, swag, draws="independent")([batch], num_samples=num_samples, seed=3)
    assert (designed.block_size, independent.block_size) == (size, 1)
    assert torch.equal(designed.logits[::size], independent.logits[::size])
    alone = copy.deepcopy(network).eval()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    for draw in range(num_samples):
        of = source("tetrahedral" if size == 4 else "antithetic", draw)
        state = dict(swag.mean)
        for name in swag.variance:
            drawn = [swag.draw(stream(3, of.block + index))[name] for index in range(len(of.weights))]
            moved = sum(w * (one - swag.mean[name]) for w, one in zip(of.weights, drawn, strict=True))
            state[name] = swag.mean[name] + moved
        alone.load_state_dict(state, strict=False)
        with torch.no_grad():
            expected = alone(**inputs).logits
        torch.testing.assert_close(designed.logits[draw], expected.to(designed.logits), rtol=1e-4, atol=1e-5)


def test_words_that_are_no_draws_are_refused() -> None:
    network, swag, _ = collected()
    with pytest.raises(ConfigurationError, match="draws='sobol'"):
        SWAGPredictor(network, swag, draws="sobol")  # type: ignore[arg-type]
