"""The task head at a learning rate of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import FitOptions, fit, fit_network
from bayes_lora.inference.finetuning.lora import LoRAOptions, add_lora
from bayes_lora.inference.finetuning.point_networks import fit_point, make_network
from bayes_lora.inference.training.own_groups import head_parameters
from tests.inference.training.test_trainer import build_trainer, learnable_rows
from tests.networks import build_bert, build_llama, build_network, build_pair

HEAD = "classifier"


def moved(network: nn.Module, before: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest step of head and adapters, in one step of Adam: its learning rate."""
    found = {"head": 0.0, "adapters": 0.0}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            part = "head" if HEAD in name else "adapters"
            found[part] = max(found[part], float((parameter.detach() - before[name]).abs().max()))
    return found


def one_step(**options: Any) -> FitOptions:
    return FitOptions(epochs=1, batch_size=48, warmup_ratio=0, learning_rate=1e-3, **options)


@pytest.mark.parametrize(("given", "of_head"), [(None, 1e-3), (8e-3, 8e-3), (1e-3, 1e-3)])
def test_head_and_adapters_step_by_their_own_learning_rates(given: float | None, of_head: float) -> None:
    rows = learnable_rows(48)
    for posterior in (False, True):
        network = build_network()
        before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        options = one_step(head_learning_rate=given)
        if posterior:
            fit(*build_pair(network, sample_scale=0.0), rows, options)
        else:
            fit_network(network, rows, options)
        steps = moved(network, before)
        assert steps == pytest.approx({"head": of_head, "adapters": 1e-3}, rel=1e-3), posterior


@pytest.mark.parametrize("way", ["lora", "dora", "adapter", "full"])
def test_each_way_of_training_has_a_head(way: Any) -> None:
    point = make_network(way, build_bert(), (HEAD,), LoRAOptions(rank=2, alpha=4, targets="attention"))
    before = {name: parameter.detach().clone() for name, parameter in point.network.named_parameters()}
    fit_point(point, learnable_rows(48), one_step(head_learning_rate=8e-3))
    assert moved(point.network, before)["head"] == pytest.approx(8e-3, rel=1e-3)


def test_a_head_keeps_its_decay_and_a_posterior_its_group(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, weight_decay=0.3, head_learning_rate=0.05, posterior_learning_rate=0.2)
    head = {id(parameter): parameter for parameter in head_parameters(trainer.svi)}
    names = {id(parameter): name for name, parameter in trainer.svi.named_parameters()}
    assert {names[key].rpartition(".")[2] for key in head} == {"weight", "bias"}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            expected = 0.05 if id(parameter) in head else 0.2 if name.startswith("guide") else 1e-2
            assert group["lr"] == expected, name
            assert group["weight_decay"] == (0.3 if parameter.dim() > 1 and not name.startswith("guide") else 0.0), name


def test_the_posterior_phase_leaves_the_head_alone() -> None:
    network = build_network()
    head = [parameter.detach().clone() for parameter in head_parameters(network)]
    rows, pair = learnable_rows(48), build_pair(network, sample_scale=0.3)
    fit(*pair, rows, one_step(head_learning_rate=8e-3, phases="posterior"))
    assert all(torch.equal(*both) for both in zip(head, head_parameters(network), strict=True))


def test_a_network_without_a_trained_head_is_refused() -> None:
    network = add_lora(build_llama(), (), LoRAOptions(rank=2, alpha=4, targets="q_proj,lm_head"))
    assert head_parameters(network) == []  # the output layer's adapter is an adapter
    # Nor are embeddings that are trained beside the adapters, single tokens or all.
    for options in ({"trainable_token_indices": [3, 4]}, {"modules_to_save": ["embed_tokens"]}):
        own = LoraConfig(r=2, target_modules=["q_proj"], **options)
        assert head_parameters(get_peft_model(build_llama(), own)) == []
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
    with pytest.raises(ConfigurationError, match=r"head_learning_rate=0\.1 is of the task head.*modules_to_save"):
        fit_network(network, rows, FitOptions(epochs=1, head_learning_rate=0.1))
    with pytest.raises(ConfigurationError, match="head_learning_rate=0 must be"):
        FitOptions(head_learning_rate=0)
