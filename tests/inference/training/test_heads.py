"""Every likelihood through the same trials: fit, save, load, resume, accumulation, checkpointing, the Trainer."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import FitOptions, SVITrainer, fit, load_posterior, predict, save_posterior
from bayes_lora.inference.storage.checkpoints import seal
from tests.heads import HEADS, Pair, build, build_base, labels_of, rows_of
from tests.inference.training.test_trainer import arguments

EACH = pytest.mark.parametrize("name", HEADS)


def learned(pair: Pair) -> dict[str, Tensor]:
    model, guide = pair
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {name: value.detach().clone() for name, value in (trained | dict(guide.named_parameters())).items()}


def batches(name: str) -> list[dict[str, Tensor]]:
    rows, labels = rows_of(name), labels_of(name, 24)
    inputs = {key: torch.tensor([row[key] for row in rows]) for key in rows[0] if key != "labels"}
    return [{**{key: value[part] for key, value in inputs.items()}, "labels": labels[part]} for part in _PARTS]


_PARTS = (slice(0, 10), slice(10, 24))


@pytest.mark.shows(
    "head",
    "works",
    {
        "classification": "one of several classes",
        "known noise": "numbers, Gaussian noise of known size",
        "learned noise": "numbers, Gaussian noise",
        "Student's t": "numbers, noise of heavy tails",
        "multi-label": "several labels for a row",
        "ordinal": "grades",
        "tokens": "a class for each word",
        "language": "the next token (language models)",
        "choice": "one of a row's own options (multiple choice)",
        "written": "one of a row's own options, read from what is written",
    },
)
@EACH
def test_a_fit_learns_all_of_it_and_comes_back_from_its_files(name: str, tmp_path: Path) -> None:
    pair = build(name)
    before = learned(pair)
    result = fit(*pair, rows_of(name), FitOptions(epochs=4, batch_size=8, learning_rate=1e-2, log_every=3))
    assert result.history[-1]["nll"] < result.history[0]["nll"]
    after = learned(pair)
    # Query and value have biases that are not trained, and keys have no adapter: all that is trained has moved.
    assert [key for key, value in after.items() if torch.equal(value, before[key])] == []
    torch.manual_seed(0)
    base = build_base(name)
    again = load_posterior(base.double(), save_posterior(*pair, tmp_path / "posterior"))
    assert again[0].likelihood.settings() == pair[0].likelihood.settings()
    asked: list[dict[str, Any]] = [{"num_samples": 4}, {"at_mean": True}]
    for options in asked:
        one, other = (predict(*of, batches(name), **options) for of in (pair, again))
        likelihood = pair[0].likelihood
        assert torch.equal(likelihood.summary(one), likelihood.summary(other))
        assert pair[0].likelihood.metrics(one) == pytest.approx(again[0].likelihood.metrics(other), nan_ok=True)


@EACH
def test_a_resumed_run_ends_bitwise_where_the_whole_one_does(name: str, tmp_path: Path) -> None:
    steps = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2, "max_steps": 6}
    whole = build(name)
    SVITrainer(*whole, arguments(tmp_path / "whole", **steps), train_dataset=rows_of(name)).train()
    checkpoint = tmp_path / "part" / "checkpoint-3"
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", checkpoint)
    seal(checkpoint)
    again = build(name, seed=7)
    again[0].network.load_state_dict({**again[0].network.state_dict(), **_frozen(whole)})
    SVITrainer(*again, arguments(tmp_path / "part", **steps), train_dataset=rows_of(name)).train(str(checkpoint))
    for key, value in learned(whole).items():
        assert torch.equal(value, learned(again)[key]), key


def _frozen(pair: Pair) -> dict[str, Tensor]:
    """What no checkpoint holds: the base."""
    trained = {name for name, parameter in pair[0].network.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in pair[0].network.state_dict().items() if name not in trained}


@EACH
def test_accumulated_batches_are_one_batch(name: str, tmp_path: Path) -> None:
    """Without noise, which each batch would draw anew: the same updates from 8 rows at once or two times 4."""
    found = []
    for size, accumulation in ((8, 1), (4, 2)):
        pair = build(name, objective="paper", num_train_examples=None, sample_scale=0.0)
        options = {
            "gradient_accumulation_steps": accumulation,
            "per_device_train_batch_size": size,
            "max_steps": 4,
            "max_grad_norm": 0.0,  # of all parameters together, also of those whose gradient has draws
            "optim": "sgd",
        }
        SVITrainer(*pair, arguments(tmp_path, **options), train_dataset=rows_of(name)).train()
        found.append(learned(pair))
    for key, value in found[0].items():
        if "concentration" not in key and "scale_r" not in key:  # whose KL has draws
            torch.testing.assert_close(value, found[1][key], rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")
@EACH
def test_gradient_checkpointing_changes_nothing(name: str, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        pair = build(name)
        options = {"gradient_checkpointing": checkpointing, "max_steps": 3}
        SVITrainer(*pair, arguments(tmp_path, **options), train_dataset=rows_of(name)).train()
        found.append(learned(pair))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-9, atol=1e-11, msg=key)


@EACH
def test_an_evaluation_is_that_of_predict(name: str, tmp_path: Path) -> None:
    model, guide = build(name)
    trainer = SVITrainer(
        model, guide, arguments(tmp_path, per_device_eval_batch_size=10), num_samples=4, eval_dataset=rows_of(name)
    )
    found = trainer.evaluate()
    expected = model.likelihood.metrics(predict(model, guide, batches(name), num_samples=4, seed=trainer.args.seed))
    for metric, value in expected.items():
        assert found[f"eval_{metric}"] == pytest.approx(value, rel=1e-5, nan_ok=True), metric
    assert found["eval_loss"] == pytest.approx(found["eval_nll"], rel=1e-5)


@pytest.mark.parametrize("name", ["learned noise", "ordinal"])
def test_its_parameters_have_a_rate_of_their_own_and_no_decay(name: str, tmp_path: Path) -> None:
    model, guide = build(name)
    trainer = SVITrainer(
        model, guide, arguments(tmp_path, weight_decay=0.1), likelihood_learning_rate=0.5, train_dataset=rows_of(name)
    )
    groups = trainer.create_optimizer().param_groups
    held = {id(parameter): group for group in groups for parameter in group["params"]}
    for parameter in model.likelihood.parameters():
        assert (held[id(parameter)]["lr"], held[id(parameter)]["weight_decay"]) == (0.5, 0.0)
    without = torch.optim.AdamW([*model.network.parameters(), *guide.parameters()])
    with pytest.raises(ConfigurationError, match=r"trainable tensors of the model\.likelihood"):
        SVITrainer(model, guide, arguments(tmp_path), optimizers=(without, None), train_dataset=rows_of(name)).train()


@pytest.mark.parametrize("scale", [0.2, 2.0])
def test_learned_noise_is_that_of_the_labels(scale: float) -> None:
    """Around a network that cannot fit them, of frozen weights, sigma ends at the root mean square residual."""
    model, guide = build("one output", num_train_examples=64, sample_scale=1e-4)
    rows = rows_of("one output", 64)
    noise = scale * torch.randn(64, generator=torch.Generator().manual_seed(3)).double()
    for row, value in zip(rows, noise, strict=True):
        row["labels"] = float(value)
    options = FitOptions(epochs=150, batch_size=64, phases="posterior")
    fit(model, guide, rows, options)
    inputs = {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        residual = noise - model.network_logits(inputs).squeeze(-1)
    likelihood: Any = model.likelihood
    root_mean_square = float(residual.square().mean().sqrt())
    assert float(likelihood.noise_scale.detach()) == pytest.approx(root_mean_square, rel=0.02)
