"""Ensembles: members are what they are alone, wherever they were saved, and the network is given back."""

import copy
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayes_lora.errors import CheckpointFileError, ConfigurationError, PosteriorFileError
from bayes_lora.inference import FitOptions, SVITrainer, fit_network, save_posterior
from bayes_lora.inference.predictors.ensemble import Ensemble, checkpoint_states, read_state, trainable_state
from bayes_lora.inference.predictors.point_estimate import PointEstimate
from bayes_lora.inference.storage.checkpoints import SEAL_FILE
from bayes_lora.models import network_logits
from tests.inference.training.test_trainer import arguments
from tests.networks import Batch, build_bert, build_network, build_pair, learnable_rows

OPTIONS = FitOptions(epochs=1, batch_size=8, learning_rate=1e-2, save_every=3)


def members(network: nn.Module, count: int = 3) -> list[dict[str, Tensor]]:
    """The network's trained tensors with noise on each."""
    generator = torch.Generator().manual_seed(4)
    own = trainable_state(network)
    return [
        {
            name: value + 0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in own.items()
        }
        for _ in range(count)
    ]


def as_member(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The obvious way: a network of its own, whose tensors are loaded by torch."""
    network = copy.deepcopy(network)
    assert not network.load_state_dict(state, strict=False).unexpected_keys
    return network


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def whole_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_every_sample_is_its_member_alone(batch: Batch) -> None:
    network = build_network(dropout=0.5)
    network.train()
    states, before = members(network), whole_state(network)
    prediction = Ensemble(network, states)([batch], num_samples=2, seed=5)
    assert prediction.logits.shape == (3, 5, 3)  # all of them, whatever num_samples
    for logits, state in zip(prediction.logits, states, strict=True):
        assert torch.equal(logits, PointEstimate(as_member(network, state))([batch]).logits[0])
    assert not torch.allclose(prediction.logits[0], prediction.logits[1])
    assert equal(whole_state(network), before)
    assert all(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_ensemble_of_one_is_its_member(batch: Batch) -> None:
    network = build_network()
    assert torch.equal(
        Ensemble(network, [trainable_state(network)])([batch]).logits, PointEstimate(network)([batch]).logits
    )


def test_batches_do_not_matter(batch: Batch) -> None:
    ensemble = Ensemble(network := build_network(), members(network))
    parts = [{name: value[start : start + 2] for name, value in batch.items()} for start in (0, 2, 4)]
    torch.testing.assert_close(ensemble(parts).logits, ensemble([batch]).logits, rtol=1e-12, atol=1e-12)


def test_the_network_is_given_back_after_an_error(batch: Batch) -> None:
    network = build_network()
    before = whole_state(network)
    with pytest.raises(ValueError, match="input_ids"):
        Ensemble(network, members(network))([batch, {"attention_mask": batch["attention_mask"]}])
    assert equal(whole_state(network), before)


def test_inside_a_bayesian_lora(batch: Batch) -> None:
    network = build_network()
    states = members(network)
    expected = Ensemble(copy.deepcopy(network), states)([batch]).logits
    model, _ = build_pair(network, sample_scale=0.3)
    assert torch.equal(Ensemble(model.network, states)([batch]).logits, expected)


def test_members_that_do_not_fit() -> None:
    network = build_network()
    good = trainable_state(network)
    name = next(iter(good))
    with pytest.raises(ConfigurationError, match="at least one member"):
        Ensemble(network, [])
    with pytest.raises(ConfigurationError, match=f"member 1 lacks '{name}'"):
        Ensemble(network, [good, {n: v for n, v in good.items() if n != name}])
    with pytest.raises(ConfigurationError, match=r"member 0 has a tensor 'another', which this PeftModel.* lacks"):
        Ensemble(network, [{**good, "another": torch.zeros(2)}])
    with pytest.raises(ConfigurationError, match=rf"member 1: its '{name}' has shape \(1, 16\), .* \(4, 16\)"):
        Ensemble(network, [good, {**good, name: good[name][:1]}])
    frozen = "base_model.model.bert.embeddings.LayerNorm.bias"
    with pytest.raises(ConfigurationError, match=f"members 0 and 1 .* '{frozen}' is in one of them only"):
        Ensemble(network, [good, {**good, frozen: torch.zeros(16)}])
    with pytest.raises(ConfigurationError, match=r"nothing .* requires a gradient.* is_trainable=True"):
        trainable_state(network.requires_grad_(False))


def test_the_state_is_a_copy() -> None:
    network = build_network()
    state = trainable_state(network)
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert equal(state, before)
    assert {"lora_A", "lora_B", "classifier"} <= {part for name in state for part in name.split(".")}


@pytest.mark.parametrize(
    "lora",
    [{}, {"bias": "all"}, {"use_dora": True}, {"modules_to_save": ["classifier", "bert.pooler"]}],
    ids=["plain", "biases", "dora", "pooler"],
)
def test_an_adapter_folder(tmp_path: Path, lora: dict[str, Any]) -> None:
    saved = build_network(**lora)
    [state] = members(saved, 1)
    as_member(saved, state).save_pretrained(tmp_path)  # type: ignore[operator]
    network = build_network(**lora)
    before = whole_state(network)
    assert equal(read_state(tmp_path, network), state)
    assert equal(whole_state(network), before)


def test_an_adapter_loaded_for_inference(tmp_path: Path, batch: Batch) -> None:
    network = build_network()
    states = members(network, 2)
    for index, state in enumerate(states):
        as_member(network, state).save_pretrained(tmp_path / str(index))  # type: ignore[operator]
    base = network.unload()
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "1"))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    found = [read_state(tmp_path / str(index), loaded) for index in range(2)]
    assert all(equal(a, b) for a, b in zip(found, states, strict=True))
    logits = Ensemble(loaded, found)([batch]).logits
    assert torch.equal(logits[1], PointEstimate(loaded)([batch]).logits[0])
    assert not torch.allclose(logits[0], logits[1])


def test_a_saved_posterior_is_read_at_its_mean(tmp_path: Path) -> None:
    model, guide = build_pair(build_network(modules_to_save=["classifier"]))
    save_posterior(model, guide, tmp_path / "posterior")
    assert equal(read_state(tmp_path / "posterior", model.network), trainable_state(model.network))
    damage(tmp_path / "posterior" / "adapter_model.safetensors")
    with pytest.raises(PosteriorFileError, match="does not have the checksum"):
        read_state(tmp_path / "posterior", model.network)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, peft.PeftModel]:
    """A run of six steps, with a checkpoint at the third and at the last, and its network."""
    folder = tmp_path_factory.mktemp("run")
    network = build_network(num_layers=1)
    fit_network(network, learnable_rows(), OPTIONS, checkpoints=folder)
    return folder, network


def test_a_checkpoint_ensemble(trained: tuple[Path, peft.PeftModel], batch: Batch) -> None:
    folder, network = trained
    states = checkpoint_states(folder, build_network(num_layers=1))
    assert len(states) == 2
    assert equal(states[1], trainable_state(network))  # the last step's
    logits = Ensemble(network, states)([batch]).logits
    assert torch.equal(logits[1], PointEstimate(network)([batch]).logits[0])
    assert not torch.allclose(logits[0], logits[1])


def test_checkpoints_that_are_not_whole(trained: tuple[Path, peft.PeftModel], tmp_path: Path) -> None:
    folder, network = trained
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-3" / SEAL_FILE).unlink()
    assert len(checkpoint_states(tmp_path / "run", network)) == 1
    last = tmp_path / "run" / "checkpoint-6"
    damage(last / "adapter_model.safetensors")
    with pytest.raises(CheckpointFileError, match="has no whole checkpoint: no checkpoint-"):
        checkpoint_states(tmp_path / "run", network)
    with pytest.raises(CheckpointFileError, match=r"adapter_model\.safetensors is missing or damaged"):
        read_state(last, network)


def test_checkpoints_of_a_whole_network(tmp_path: Path, batch: Batch) -> None:
    torch.manual_seed(0)
    network = build_bert(num_layers=1)
    fit_network(network, learnable_rows(), OPTIONS, checkpoints=tmp_path)
    states = checkpoint_states(tmp_path, network)
    assert equal(states[1], trainable_state(network))
    # Where a part only is trained, a member holds that part, and the rest has to be the same.
    half = copy.deepcopy(network).requires_grad_(False)
    half.classifier.requires_grad_(True)
    assert read_state(tmp_path / "checkpoint-6", half).keys() == {"classifier.weight", "classifier.bias"}
    with pytest.raises(CheckpointFileError, match=r"'bert\..*' differs from the network's, where it is frozen"):
        read_state(tmp_path / "checkpoint-3", half)


def test_checkpoints_of_model_and_guide(tmp_path: Path, batch: Batch) -> None:
    model, guide = build_pair(build_network(num_layers=1))
    rows: Any = learnable_rows()
    SVITrainer(model, guide, arguments(tmp_path, save_strategy="steps", save_steps=6), train_dataset=rows).train()
    states = checkpoint_states(tmp_path, model.network)
    assert len(states) == 2
    assert equal(states[1], trainable_state(model.network))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    network = build_network()
    network.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    good = load_file(path)
    name = next(iter(good))
    save_file({n: v for n, v in good.items() if n != name}, path)
    with pytest.raises(CheckpointFileError, match=r"adapter_model\.safetensors lacks '.*lora_A\.default\.weight'"):
        read_state(tmp_path, network)
    save_file({**good, "another": torch.zeros(2)}, path)
    with pytest.raises(CheckpointFileError, match=r"has a tensor 'another', which this PeftModel.* lacks"):
        read_state(tmp_path, network)
    save_file(good, path)
    with pytest.raises(CheckpointFileError, match=r"lora_A\.default\.weight' has shape \(4, 16\), .* \(2, 16\)"):
        read_state(tmp_path, build_network(r=2))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointFileError, match="cannot be read"):
        read_state(tmp_path, network)
    path.unlink()
    with pytest.raises(CheckpointFileError, match=r"has neither adapter_model\.safetensors nor model\.safetensors"):
        read_state(tmp_path, network)


def test_the_logits_are_the_networks_own(batch: Batch) -> None:
    """A member that was put into the network is gone when the next forward pass runs."""
    network = build_network()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        before = network_logits(network, inputs)
        Ensemble(network, members(network))([batch])
        assert torch.equal(network_logits(network, inputs), before)
