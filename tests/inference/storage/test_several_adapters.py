"""A posterior of several PEFT adapters that are active at once: trained, resumed, saved, opened again."""

import copy
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from bayes_lora.adapters import find_adapters
from bayes_lora.errors import AdapterError, PosteriorFileError
from bayes_lora.inference import FitOptions, SVITrainer, fit, load_posterior, predict, save_posterior
from bayes_lora.inference.storage.checkpoints import seal
from bayes_lora.inference.storage.posterior_files import saved_adapters
from tests.inference.training.test_trainer import arguments
from tests.networks import Batch, build_network, build_pair, learnable_rows
from tests.posteriors import FILES, build_base, content, same, sample

# Of PEFT's models for a kind of task every adapter has a head of its own, and PEFT lets one of them be active.
FIRST: dict[str, Any] = {"task_type": None, "modules_to_save": ["classifier"]}
ORDERS = pytest.mark.parametrize("order", [["default", "other"], ["other", "default"]])


def build_two(order: list[str], seed: int = 0, **other: Any) -> Any:
    """Two adapters that meet on queries; B is not zero, so that A matters."""
    network = build_network(seed=seed, **FIRST)
    network.add_adapter("other", peft.LoraConfig(**({"r": 2, "target_modules": ["query", "output.dense"]} | other)))
    network.double().base_model.set_adapter(order)
    for name, parameter in network.named_parameters():
        if "lora_B.other" in name:
            nn.init.normal_(parameter, std=0.3)
    return network.eval()


@ORDERS
def test_each_has_its_own_noise(order: list[str], batch: Batch) -> None:
    """Against a copy whose weights were changed by hand."""
    network = build_two(order)
    by_hand = copy.deepcopy(network)
    model, _ = build_pair(network)
    noises = [torch.randn(len(g), g.rank, g.in_features).double() for g in model.sites.groups]
    assert len(set(model.sites.names)) == len(model.sites.names) == 10
    with torch.no_grad():
        for adapter, noise in zip(find_adapters(by_hand), [one for of in noises for one in of], strict=True):
            adapter.linear.weight += noise.view_as(adapter.linear.weight)
        with model.perturbed(noises):
            found = model.network_logits(batch)
    torch.testing.assert_close(found, by_hand(**batch).logits, rtol=1e-10, atol=1e-12)


@pytest.mark.shows("adapter", "works", "several active adapters")
@ORDERS
def test_fitted_saved_and_opened_again(order: list[str], tmp_path: Path, batch: Batch) -> None:
    model, guide = build_pair(build_two(order), sample_scale=0.3)
    before = {adapter.name: adapter.mean.clone() for adapter in model.sites.adapters}
    fit(model, guide, learnable_rows(16), FitOptions(epochs=1, batch_size=8, learning_rate=1e-2))
    assert not any(torch.equal(adapter.mean, before[adapter.name]) for adapter in model.sites.adapters)
    folder = save_posterior(model, guide, tmp_path / "posterior")
    inner = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in folder.iterdir()} == {*FILES, "other"}
    assert {path.name for path in (folder / "other").iterdir()} == inner
    again = load_posterior(build_base(), folder)
    assert same(content(*again), content(model, guide))
    assert torch.equal(sample(*again, batch), sample(model, guide, batch))
    assert not any(parameter.requires_grad for parameter in again[0].network.parameters())
    trainable, _ = load_posterior(build_base(), folder, is_trainable=True)
    assert all(of.requires_grad for adapter in trainable.sites.adapters for of in adapter.parameters())


@pytest.mark.filterwarnings("ignore:Adapter other was active:UserWarning")
def test_peft_alone_opens_the_mean_as_the_card_says(tmp_path: Path, batch: Batch) -> None:
    model, guide = build_pair(build_two(["other", "default"]), sample_scale=0.3)
    folder = save_posterior(model, guide, tmp_path / "posterior")
    card = (folder / "README.md").read_text()
    assert 'load_adapter("path/to/this/folder/other", adapter_name="other")` and' in card
    assert "`base_model.set_adapter(['other', 'default'])`" in card
    network = peft.PeftModel.from_pretrained(build_base(), folder)
    network.load_adapter(folder / "other", adapter_name="other")
    network.base_model.set_adapter(["other", "default"])
    assert torch.equal(network.eval()(**batch).logits, predict(model, guide, [batch], at_mean=True).logits[0])


def test_a_damaged_folder_of_the_second_is_named(tmp_path: Path) -> None:
    folder = save_posterior(*build_pair(build_two(["default", "other"])), tmp_path / "posterior")
    path = folder / "other" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PosteriorFileError, match=r"other/adapter_model\.safetensors does not have the checksum"):
        load_posterior(build_base(), folder)
    shutil.rmtree(folder / "other")
    with pytest.raises(PosteriorFileError, match=r"other/adapter_config\.json is missing"):
        load_posterior(build_base(), folder)


def test_the_trainer_resumes_and_saves_both(tmp_path: Path, batch: Batch) -> None:
    steps: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    order = ["default", "other"]
    whole = build_pair(build_two(order), sample_scale=0.3)
    trainer = SVITrainer(*whole, arguments(tmp_path / "whole", **steps), train_dataset=learnable_rows(16))
    trainer.train()
    checkpoint = tmp_path / "part" / "checkpoint-2"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", checkpoint)
    seal(checkpoint)
    again = build_pair(build_two(order), sample_scale=0.3)
    SVITrainer(*again, arguments(tmp_path / "part", **steps), train_dataset=learnable_rows(16)).train(str(checkpoint))
    assert same(content(*again), content(*whole))
    for _ in range(2):  # the second time over the first
        trainer.save_model(str(tmp_path / "saved"))
    loaded = load_posterior(build_base(), tmp_path / "saved")
    assert torch.equal(sample(*loaded, batch), sample(*whole, batch))


def test_both_must_stay_active(batch: Batch) -> None:
    model, guide = build_pair(build_two(["default", "other"]), sample_scale=0.3)
    model.network.set_adapter("default")  # type: ignore[operator]
    with pytest.raises(AdapterError, match=r"active adapters are \['default'\], .* of \['default', 'other'\]"):
        predict(model, guide, [batch], num_samples=2)


@pytest.mark.parametrize("names", [["default", "../other"], "default", [1], ["default", "a/b"]])
def test_names_that_lead_elsewhere_are_refused(names: Any) -> None:
    with pytest.raises(PosteriorFileError, match=r"bayes_lora\.json does not say of which adapters it is"):
        saved_adapters({"peft_adapters": names})
