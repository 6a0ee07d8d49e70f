"""The Trainer whose loss is the ELBO: against a plain Pyro loop, and against itself resumed."""

import copy
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from bayes_lora.errors import CheckpointFileError, ConfigurationError, NonFiniteLossError
from bayes_lora.inference import evaluate, load_posterior, predict
from bayes_lora.inference.training.trainer import SVITrainer
from tests.networks import build_network, build_pair


def learnable_rows(count: int = 64) -> list[dict[str, Any]]:
    """Rows whose label is their first token modulo 3."""
    tokens = torch.randint(1, 50, (count, 7), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 7, "labels": int(row[0]) % 3} for row in tokens]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 4,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **defaults | options)


def build_trainer(
    folder: Path, trainer: type[SVITrainer] = SVITrainer, dropout: float = 0.1, **options: Any
) -> SVITrainer:
    own = (
        *("posterior_learning_rate", "weight_decay_of", "callbacks", "compute_metrics", "compute_loss_func"),
        *("preprocess_logits_for_metrics", "head_learning_rate", "phase"),
    )
    keywords = {name: options.pop(name) for name in own if name in options}
    model, guide = build_pair(build_network(dropout=dropout), sample_scale=0.3, kl_weight=0.01)
    return trainer(
        model,
        guide,
        arguments(folder, **options),
        train_dataset=learnable_rows(),
        eval_dataset=learnable_rows(20),
        num_samples=3,
        **keywords,
    )


def state(trainer: SVITrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.svi.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_it_follows_the_plain_pyro_loop(tmp_path: Path) -> None:
    trainer = build_trainer(
        tmp_path, logging_steps=1, max_grad_norm=0.0, lr_scheduler_type="constant", weight_decay=0.1
    )
    torch.manual_seed(5)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    twin = build_trainer(tmp_path, weight_decay=0.1)
    model, guide = twin.svi.model.train(), twin.svi.guide
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "bias" not in n]
    kept = [p for n, p in model.named_parameters() if p.requires_grad and "bias" in n]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.1},
            {"params": [*kept], "weight_decay": 0.0},
            {"params": list(guide.parameters()), "lr": 1e-2, "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    loss_of = TraceMeanField_ELBO()(model, guide)
    losses = []
    torch.manual_seed(5)
    loader = twin.get_train_dataloader()
    for _ in range(2):
        for batch in loader:
            loss = loss_of(**batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert len(losses) == 16
    assert logged == pytest.approx(losses, rel=1e-5)
    for name, value in state(twin).items():
        torch.testing.assert_close(state(trainer)[name], value, rtol=1e-5, atol=1e-7)


def test_logs_hold_the_terms_of_the_loss(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, posterior_learning_rate=0.5, warmup_steps=0, lr_scheduler_type="constant")
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 4
    for entry in entries:
        terms = ("nll", "kl_dirichlet", "kl_wishart", "kl_normal", "cooperative")
        assert sum(entry[term] for term in terms) == pytest.approx(entry["loss"], rel=1e-5)
    assert trainer.optimizer is not None
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-2, 1e-2, 0.5]


def test_evaluation_is_that_of_predict_and_metrics(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    metrics = trainer.evaluate()
    batch = default_data_collator(learnable_rows(20))
    expected = predict(trainer.svi.model, trainer.svi.guide, [batch], num_samples=3, seed=42)
    point = predict(trainer.svi.model, trainer.svi.guide, [batch], at_mean=True)
    assert expected.labels is not None
    for prediction, prefix in ((expected, "eval_"), (point, "eval_point_")):
        for name, value in evaluate(prediction.mean_probs, expected.labels).items():
            assert metrics[prefix + name] == pytest.approx(value, abs=1e-6)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_nll"], rel=1e-5)


@pytest.mark.parametrize("step", [4, 8, 12])
def test_a_resumed_run_ends_bitwise_where_the_whole_one_does(tmp_path: Path, step: int) -> None:
    saving: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_strategy": "epoch",
        "lr_scheduler_type": "cosine",
    }
    whole = build_trainer(tmp_path, **saving)
    whole.train()
    resumed = build_trainer(tmp_path, **saving)
    with torch.no_grad():
        for parameter in resumed.svi.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)  # what was there before must not matter
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_same(state(whole), state(resumed))


def test_checkpoints_hold_only_what_is_trained(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, save_strategy="epoch")
    trainer.train()
    names = set(state(trainer))
    assert {"guide.concentration_unconstrained", "guide.scale_r4_unconstrained"} <= names
    assert not [name for name in names if "embeddings" in name or "base_layer" in name]


def test_the_best_checkpoint_comes_back(tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 3}
    trainer = build_trainer(
        tmp_path, **options, load_best_model_at_end=True, metric_for_best_model="eval_nll", greater_is_better=False
    )
    trainer.train()
    best = min(entry["eval_nll"] for entry in trainer.state.log_history if "eval_nll" in entry)
    assert trainer.evaluate()["eval_nll"] == pytest.approx(best, rel=1e-6)


class SameDraws(SVITrainer):
    """Every micro-batch sees the same posterior draw, so that gradients can be compared."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return super().compute_loss(*args, **kwargs)


class Undivided(SameDraws):
    """The published defect: the loss of every micro-batch counts whole."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.current_gradient_accumulation_steps = 1  # by which the Trainer divides afterwards
        return super().compute_loss(*args, **kwargs)


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def accumulated(folder: Path, trainer: type[SVITrainer], micro_batches: int) -> dict[str, Tensor]:
    kept = Gradients()
    build_trainer(
        folder,
        trainer,
        dropout=0.0,
        per_device_train_batch_size=32 // micro_batches,
        gradient_accumulation_steps=micro_batches,
        max_steps=1,
        max_grad_norm=0.0,
        callbacks=[kept],
    ).train()
    return kept.found


@pytest.mark.parametrize("micro_batches", [4, 8])
def test_accumulation_does_not_multiply_the_kl(tmp_path: Path, micro_batches: int) -> None:
    whole = accumulated(tmp_path, SameDraws, 1)
    parts = accumulated(tmp_path, SameDraws, micro_batches)
    assert "guide.concentration_unconstrained" in whole
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-10)
    defect = accumulated(tmp_path, Undivided, micro_batches)["guide.scale_r4_unconstrained"]
    assert not torch.allclose(defect, whole["guide.scale_r4_unconstrained"], rtol=0.5)


def test_columns_the_network_does_not_take_are_dropped(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    table = datasets.Dataset.from_list([{**row, "note": "x"} for row in learnable_rows(8)])
    trainer.train_dataset = table
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_a_loss_that_is_no_number_is_named(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    with torch.no_grad():
        trainer.svi.guide.scale_r4_unconstrained[0] = float("nan")  # type: ignore[operator]
    with pytest.raises(NonFiniteLossError, match=r"at step 1, in the term\(s\) .*kl_wishart"):
        trainer.train()


def test_metrics_of_the_users_own_see_what_any_trainer_shows(tmp_path: Path) -> None:
    """As in the task guides of transformers: the class with the largest of (example, class) numbers."""

    def own(prediction: EvalPrediction) -> dict[str, float]:
        scores: Any = prediction.predictions
        assert scores.shape == (20, 3)
        return {"right": float((scores.argmax(-1) == prediction.label_ids).mean())}

    trainer = build_trainer(tmp_path, compute_metrics=own)
    metrics = trainer.evaluate()
    assert metrics["eval_right"] == pytest.approx(metrics["eval_accuracy"])
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions.shape == (20, 3)
    assert output.metrics["test_right"] == metrics["eval_right"]
    batch = default_data_collator(learnable_rows(20))
    expected = predict(trainer.svi.model, trainer.svi.guide, [batch], num_samples=3, seed=42)
    assert np.exp(output.predictions) == pytest.approx(expected.mean_probs.numpy(), abs=1e-6)


def test_metrics_see_inputs_and_losses_where_asked(tmp_path: Path) -> None:
    def own(prediction: EvalPrediction) -> dict[str, float]:
        assert prediction.inputs.shape == (20, 7)  # type: ignore[union-attr]
        return {"mean_loss": float(np.mean(prediction.losses))}  # type: ignore[arg-type]

    trainer = build_trainer(tmp_path, compute_metrics=own, include_for_metrics=["inputs", "loss"])
    metrics = trainer.evaluate()
    assert metrics["eval_mean_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)


def test_predictions_batch_by_batch(tmp_path: Path) -> None:
    whole = build_trainer(tmp_path, per_device_eval_batch_size=8)
    parts = build_trainer(tmp_path, per_device_eval_batch_size=8, eval_do_concat_batches=False)
    assert parts.evaluate()["eval_nll"] == pytest.approx(whole.evaluate()["eval_nll"])
    batches = parts.predict(parts.eval_dataset).predictions
    assert [batch.shape for batch in batches] == [(8, 3), (8, 3), (4, 3)]
    assert np.array_equal(np.concatenate(batches), whole.predict(whole.eval_dataset).predictions)


def test_the_loss_alone(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, prediction_loss_only=True)
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions is None
    assert output.metrics["test_loss"] > 0


def test_evaluation_in_half_precision_leaves_the_posterior_whole(tmp_path: Path) -> None:
    full = build_trainer(tmp_path).evaluate()
    trainer = build_trainer(tmp_path, bf16_full_eval=True)
    half = trainer.evaluate()
    assert half["eval_nll"] == pytest.approx(full["eval_nll"], abs=0.02)
    assert {parameter.dtype for parameter in trainer.svi.guide.parameters()} == {torch.float64}
    assert {parameter.dtype for parameter in trainer.svi.model.network.parameters()} == {torch.bfloat16}


def test_the_run_folder_stands_for_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    (tmp_path / "checkpoint-16" / "complete.json").unlink()  # cut short
    for where in (str(tmp_path), "True"):
        again = build_trainer(tmp_path, save_strategy="no")
        again.train(resume_from_checkpoint=where)
        assert_same(state(trainer), state(again))
    with pytest.raises(CheckpointFileError, match="checkpoint-16 is not a whole checkpoint"):
        build_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
    with pytest.raises(CheckpointFileError, match="is not a whole checkpoint"):
        build_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "nothing"))


def test_noisy_embeddings_are_those_of_the_network(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, neftune_noise_alpha=0.1, max_steps=1)
    quiet = build_trainer(tmp_path, max_steps=1)
    losses = []
    for training in (trainer, quiet):
        torch.manual_seed(3)
        training.train()
        losses.append(training.state.log_history[-1]["train_loss"])
    assert losses[0] != losses[1]


def test_what_would_change_the_objective_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="label_smoothing_factor changes the loss outside the model"):
        build_trainer(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ConfigurationError, match="batch_eval_metrics is not supported"):
        build_trainer(tmp_path, batch_eval_metrics=True)
    with pytest.raises(ConfigurationError, match="preprocess_logits_for_metrics is not supported"):
        build_trainer(tmp_path, preprocess_logits_for_metrics=lambda logits, labels: logits)
    with pytest.raises(ConfigurationError, match="compute_loss_func would replace the ELBO"):
        build_trainer(tmp_path, compute_loss_func=lambda *args, **kwargs: torch.zeros(()))


def test_fsdp_by_the_arguments_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = build_pair(build_network())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")  # the arguments set it
    with pytest.raises(ConfigurationError, match="FSDP is not supported: it keeps a part of each weight"):
        SVITrainer(*pair, arguments(tmp_path, fsdp=True))


@pytest.mark.shows(
    "sharding", "refused", {"FSDP": "FSDP under the Trainer", "DeepSpeed": "DeepSpeed under the Trainer"}
)
@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_what_accelerate_would_shard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    options = arguments(tmp_path)
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")  # as `accelerate launch` does
    with pytest.raises(ConfigurationError, match=f"{name} is not supported"):
        SVITrainer(*build_pair(build_network()), options)


@pytest.mark.shows("sharding", "refused", "several GPUs in one process (DataParallel)")
def test_copies_in_one_process_are_refused(tmp_path: Path) -> None:
    options = arguments(tmp_path)
    options._n_gpu = 2  # what TrainingArguments counts
    with pytest.raises(ConfigurationError, match=r"2 GPUs in one process would run copies .*\(torchrun"):
        SVITrainer(*build_pair(build_network()), options)


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="posterior_learning_rate=0 must be positive"):
        build_trainer(tmp_path, posterior_learning_rate=0)
    assert issubclass(SVITrainer, Trainer)


def test_save_model_writes_a_posterior(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, save_strategy="epoch", eval_strategy="epoch")
    network: Any = trainer.svi.model.network
    base = copy.deepcopy(network).unload()
    trainer.train()
    trainer.save_model()
    assert {"checkpoint-8", "checkpoint-16", "posterior.safetensors", "adapter_model.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert not list(tmp_path.glob(".posterior-*"))
    model, guide = load_posterior(base, tmp_path)
    for name, value in guide.state_dict().items():
        assert torch.equal(value, trainer.svi.guide.state_dict()[name])
    batch = default_data_collator(learnable_rows(4))
    mine = predict(trainer.svi.model, trainer.svi.guide, [batch], num_samples=2)
    assert torch.equal(predict(model, guide, [batch], num_samples=2).logits, mine.logits)

    trainer.create_model_card(language="en", dataset_tags="glue")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    last = [entry for entry in trainer.state.log_history if "eval_nll" in entry][-1]
    assert f"{last['eval_nll']:.4f}" in card
    assert "language: en" in card


def test_a_guide_of_another_kind_is_not_saved_as_this_one(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    trainer.svi.guide = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigurationError, match="this Linear is of no such kind"):
        trainer.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
