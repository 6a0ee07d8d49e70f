"""Frozen adapters and optimizers that hold a part: nothing is left where it was in silence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Trainer

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import FitOptions, SVITrainer, fit, load_posterior, save_posterior
from bayes_lora.inference.training.fit import fit_network
from bayes_lora.models import BayesianLoRA
from tests.inference.training.test_trainer import arguments
from tests.networks import build_bert, build_network, build_pair, learnable_rows

ROWS = learnable_rows(24)
FROZEN = r"every LoRA matrix of the network is frozen.*is_trainable=True.*phases='posterior'"
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2}


def base() -> Any:
    torch.manual_seed(0)
    network: Any = build_bert()
    return network.to(torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A posterior whose adapter is beside it."""
    return save_posterior(*build_pair(), tmp_path_factory.mktemp("saved") / "posterior")


def _of_posterior(folder: Path) -> tuple[BayesianLoRA, Any]:
    return load_posterior(base(), folder)


def _of_adapter(folder: Path) -> tuple[BayesianLoRA, Any]:
    return build_pair(peft.PeftModel.from_pretrained(base(), str(folder)))


def _of_inference_mode(folder: Path) -> tuple[BayesianLoRA, Any]:
    return build_pair(build_network(inference_mode=True))


def _with_trainable_head(folder: Path) -> tuple[BayesianLoRA, Any]:
    model, guide = _of_posterior(folder)
    model.network.get_submodule("base_model.model.classifier").requires_grad_(True)
    return model, guide


FROZEN_PAIRS = [_of_posterior, _of_adapter, _of_inference_mode, _with_trainable_head]


def means(model: BayesianLoRA) -> list[Tensor]:
    return [adapter.linear.weight.detach().clone() for adapter in model.sites.adapters]


def moved(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("build", FROZEN_PAIRS)
def test_a_joint_fit_of_frozen_adapters_is_refused(build: Callable[[Path], Any], folder: Path, tmp_path: Path) -> None:
    model, guide = build(folder)
    with pytest.raises(ConfigurationError, match=FROZEN):
        fit(model, guide, ROWS, FitOptions(**SHORT))
    with pytest.raises(ConfigurationError, match=FROZEN):
        SVITrainer(model, guide, arguments(tmp_path), train_dataset=ROWS).train()


@pytest.mark.parametrize("build", FROZEN_PAIRS[:3])
def test_the_means_of_a_frozen_network_cannot_be_learned_first(build: Callable[[Path], Any], folder: Path) -> None:
    model, guide = build(folder)
    with pytest.raises(ConfigurationError, match=r"every parameter of the network is frozen.*is_trainable=True"):
        fit(model, guide, ROWS, FitOptions(**SHORT, phases="means_then_posterior"))
    with pytest.raises(ConfigurationError, match="every parameter of the network is frozen"):
        fit_network(model.network, ROWS, FitOptions(**SHORT))


@pytest.mark.parametrize("build", FROZEN_PAIRS)
def test_post_hoc_wants_it_frozen(build: Callable[[Path], Any], folder: Path, tmp_path: Path) -> None:
    model, guide = build(folder)
    before, posterior = means(model), [parameter.detach().clone() for parameter in guide.parameters()]
    fit(model, guide, ROWS, FitOptions(**SHORT, phases="posterior"))
    assert not moved(before, means(model))
    assert moved(posterior, list(guide.parameters()))
    between = [parameter.detach().clone() for parameter in guide.parameters()]
    SVITrainer(model, guide, arguments(tmp_path), phase="posterior", train_dataset=ROWS).train()
    assert not moved(before, means(model))
    assert moved(between, list(guide.parameters()))


def test_the_trainer_can_leave_a_trainable_network_as_it_is(tmp_path: Path) -> None:
    model, guide = build_pair()
    asked = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = means(model)
    SVITrainer(model, guide, arguments(tmp_path), phase="posterior", train_dataset=ROWS).train()
    assert not moved(before, means(model))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == asked
    with pytest.raises(ConfigurationError, match="phase='means' is none of 'joint', 'posterior'"):
        SVITrainer(model, guide, arguments(tmp_path), phase="means")  # type: ignore[arg-type]


def test_opened_trainable_it_goes_on(folder: Path, tmp_path: Path) -> None:
    model, guide = load_posterior(base(), folder, is_trainable=True)
    before, head = means(model), model.network.get_submodule("base_model.model.classifier")
    assert all(parameter.requires_grad for parameter in head.modules_to_save.parameters())  # type: ignore[union-attr]
    fit(model, guide, ROWS, FitOptions(**SHORT))
    assert moved(before, means(model))
    before = means(model)
    SVITrainer(model, guide, arguments(tmp_path), train_dataset=ROWS).train()
    assert moved(before, means(model))


def _adamw(*parts: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for part in parts for p in part.parameters() if p.requires_grad], lr=1e-2)


PARTIAL: dict[str, tuple[Callable[[BayesianLoRA, Any], torch.optim.Optimizer], str]] = {
    "network": (lambda model, guide: _adamw(model), "of the guide, such as 'concentration_unconstrained'"),
    "guide": (lambda model, guide: _adamw(guide), "of the network, such as 'base_model.model"),
    "LoRA+": (
        lambda model, guide: create_loraplus_optimizer(model.network, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4),
        "lacks 2 of the 2 trainable tensors of the guide",
    ),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_an_optimizer_that_lacks_something_is_refused(name: str, tmp_path: Path) -> None:
    model, guide = build_pair()
    build, message = PARTIAL[name]
    trainer = SVITrainer(model, guide, arguments(tmp_path), train_dataset=ROWS, optimizers=(build(model, guide), None))
    with pytest.raises(ConfigurationError, match=message):
        trainer.train()


def test_the_remedy_is_one(tmp_path: Path) -> None:
    """As the message says it; and the second training of one trainer has the optimizer of the first."""
    model, guide = build_pair()
    optimizer = PARTIAL["LoRA+"][0](model, guide)
    optimizer.add_param_group({"params": [p for p in guide.parameters() if p.requires_grad], "lr": 1e-2})
    before = means(model), [parameter.detach().clone() for parameter in guide.parameters()]
    trainer = SVITrainer(model, guide, arguments(tmp_path), train_dataset=ROWS, optimizers=(optimizer, None))
    trainer.train()
    assert moved(before[0], means(model))
    assert moved(before[1], list(guide.parameters()))
    trainer.train()


class _Stream(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Any:
        return iter([{name: torch.tensor(value) for name, value in row.items()} for row in ROWS])


def _generated() -> Any:
    from datasets import Dataset

    return Dataset.from_list(ROWS).to_iterable_dataset()


@pytest.mark.parametrize("build", [_Stream, _generated, lambda: iter(ROWS), lambda: {"input_ids": [[1]]}.keys()])
def test_a_stream_of_rows_is_refused_by_name(build: Callable[[], Any]) -> None:
    with pytest.raises(DataError, match=r"has no length or no order of its own.*max_steps"):
        fit(*build_pair(), build(), FitOptions(**SHORT))


@pytest.mark.parametrize("build", [_Stream, _generated])
def test_a_stream_of_rows_under_the_trainer(build: Callable[[], Any], tmp_path: Path) -> None:
    """As its message says: with max_steps, and the number of rows where the KL takes it."""
    model, guide = build_pair(objective="elbo", num_train_examples=len(ROWS))
    before = means(model)
    trainer: Trainer = SVITrainer(model, guide, arguments(tmp_path, max_steps=4), train_dataset=build())
    assert trainer.train().global_step == 4
    assert moved(before, means(model))
    with pytest.raises(ConfigurationError, match="the dataset has no length"):
        SVITrainer(*build_pair(objective="elbo"), arguments(tmp_path, max_steps=4), train_dataset=build()).train()
