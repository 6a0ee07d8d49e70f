"""The phases of a fit: all at once, the posterior alone (post hoc), or the means first and then the posterior."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from bayes_lora.adapters import unwrap
from bayes_lora.errors import ConfigurationError, DataError, NonFiniteLossError
from bayes_lora.inference import FitOptions, MonteCLoRAGuide, fit, fit_network
from bayes_lora.inference.training.sealed_trainer import SealedTrainer
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import Part
from tests.networks import build_bert, build_network, build_pair, learnable_rows

POST_HOC = FitOptions(epochs=2, batch_size=8, learning_rate=1e-2, log_every=2, phases="posterior")
TWO = FitOptions(epochs=2, batch_size=8, learning_rate=1e-2, log_every=2, save_every=2, phases="means_then_posterior")


def build(**config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    options: dict[str, Any] = {"sample_scale": 0.2, "kl_weight": 1e-3, **config}
    return build_pair(build_network(num_layers=1, dropout=0.1), **options)


def state(*modules: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for module in modules for name, value in module.state_dict().items()}


@pytest.mark.parametrize("objective", ["paper", "elbo"])
def test_post_hoc_leaves_the_network_as_it_is(objective: str) -> None:
    config = {"kl_weight": None, "objective": "elbo", "num_train_examples": 48} if objective == "elbo" else {}
    model, guide = build(**config)
    before, learned = state(model), state(guide)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    fit(model, guide, learnable_rows(), POST_HOC)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert not any(torch.equal(value, learned[name]) for name, value in state(guide).items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trained


def test_two_phases_are_plain_lora_and_then_post_hoc() -> None:
    """By hand: the Trainer on the PEFT model for half of the steps, then the guide alone for the other half."""
    model, guide = build()
    fit(model, guide, learnable_rows(), TWO)

    twin, twin_guide = build()
    half = FitOptions(epochs=1, batch_size=8, learning_rate=1e-2, log_every=2)
    network = unwrap(twin.network)
    fit_network(network, learnable_rows(), half)
    config = model.config
    later = BayesianLoRA(network, config)
    later_guide = MonteCLoRAGuide(later)
    later_guide.load_state_dict(twin_guide.state_dict())
    fit(later, later_guide, learnable_rows(), FitOptions(**{**vars(half), "phases": "posterior"}))
    for name, value in state(later, later_guide).items():
        assert torch.equal(value, state(model, guide)[name]), name


def test_the_point_estimate_is_the_trainers(tmp_path: Path) -> None:
    options = FitOptions(epochs=2, batch_size=8, learning_rate=1e-2, log_every=4, warmup_ratio=0.0, max_grad_norm=1.0)
    network = build_network(num_layers=1)
    result = fit_network(network, learnable_rows(), options)
    assert [entry["step"] for entry in result.history] == [4, 8, 12]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert not network.training

    twin = build_network(num_layers=1)
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        weight_decay=0.0,
        seed=0,
        data_seed=options.seed_of(Part.ORDER),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows: Any = learnable_rows()
    torch.manual_seed(0)
    Trainer(twin, arguments, train_dataset=rows, data_collator=default_data_collator).train()
    for name, value in state(twin).items():
        assert torch.equal(value, state(network)[name]), name


def test_any_network_can_be_the_point_estimate() -> None:
    torch.manual_seed(0)
    network = build_bert(num_layers=1)
    before = state(network)
    fit_network(network, learnable_rows(), FitOptions(epochs=1, batch_size=16))
    changed = {name for name, value in state(network).items() if not torch.equal(value, before[name])}
    assert {"classifier.weight", "bert.encoder.layer.0.attention.self.query.weight"} <= changed


class StopAt(TrainerCallback):
    """Interrupts training, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("phase", "step"), [("means", 3), ("means", 6), ("posterior", 1), ("posterior", 5)])
def test_an_interrupted_fit_ends_as_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    whole, guide = build()
    history = fit(whole, guide, learnable_rows(), TWO).history
    expected = state(whole, guide)
    assert [entry["step"] for entry in history] == [2, 4, 6, 8, 10, 12]
    assert ["kl_wishart" in entry for entry in history] == 3 * [False] + 3 * [True]

    train = SealedTrainer.train

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(str(self.args.output_dir)).name == phase:
            self.add_callback(StopAt(step))
        return train(self, *args, **kwargs)

    first = build()
    with monkeypatch.context() as patch:
        patch.setattr(SealedTrainer, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(*first, learnable_rows(), TWO, checkpoints=tmp_path)
    assert all(parameter.requires_grad for name, parameter in first[0].named_parameters() if "lora_A" in name), (
        "an interrupted fit must leave the network trainable"
    )

    second = build()
    resumed = fit(*second, learnable_rows(), TWO, checkpoints=tmp_path)
    found = state(*second)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert [entry["step"] for entry in resumed.history] == [2, 4, 6, 8, 10, 12]


def test_refused() -> None:
    model, guide = build()
    with pytest.raises(ConfigurationError, match="phases='both' is none of 'joint', 'posterior'"):
        FitOptions(phases="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="needs at least two steps, and there are 1"):
        fit(model, guide, learnable_rows(), FitOptions(epochs=1, batch_size=48, phases="means_then_posterior"))
    with pytest.raises(DataError, match="the training set is empty"):
        fit_network(build_bert(), [])
    network = build_network(num_layers=1)
    with pytest.raises(NonFiniteLossError, match="is NaN or infinite after the last step"):
        fit_network(
            network, learnable_rows(), FitOptions(epochs=1, learning_rate=1e308, warmup_ratio=0, weight_decay=9)
        )
