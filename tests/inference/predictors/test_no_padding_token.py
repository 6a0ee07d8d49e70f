"""Decoders that take batches of one row only, for want of a padding token: a draw has a pass of its own there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from bayes_lora.inference import MCDropout, SVITrainer, calibrate_scale, predict
from tests.inference.training.test_trainer import arguments
from tests.networks import Batch, build_pair


def llama() -> Any:
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
        pad_token_id=None,
    )
    return LlamaForSequenceClassification(config), ["q_proj", "v_proj"]


def gpt2() -> Any:
    config = GPT2Config(  # type: ignore[call-arg]
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, num_labels=3, pad_token_id=None
    )
    return GPT2ForSequenceClassification(config), ["c_proj"]


def pair(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    network, targets = build()
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets, fan_in_fan_out=build is gpt2)
    wrapped = peft.get_peft_model(network, lora)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return build_pair(wrapped.double(), sample_scale=0.3)


def rows_of_one(batch: Batch) -> list[Batch]:
    return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(4)]


@pytest.mark.parametrize("build", [llama, gpt2])
def test_it_predicts_as_one_draw_a_pass_does(build: Callable[[], Any], batch: Batch) -> None:
    model, guide = pair(build)
    parts = rows_of_one(batch)
    found = predict(model, guide, parts, num_samples=4)
    assert torch.equal(found.logits, predict(model, guide, parts, num_samples=4, draws_per_pass=1).logits)
    assert found.logits.std(0).min() > 0
    assert predict(model, guide, parts, num_samples="auto").logits.isfinite().all()
    with pytest.raises(ValueError, match="no padding token"):  # the network's own error, of more rows than it takes
        predict(model, guide, [batch], num_samples=4)


def test_from_the_trainer_and_in_calibration(batch: Batch, tmp_path: Path) -> None:
    model, guide = pair(llama)
    parts = rows_of_one(batch)
    rows = [{name: value[0] for name, value in part.items()} for part in parts]
    one_row = arguments(tmp_path, per_device_eval_batch_size=1, per_device_train_batch_size=1)
    trainer = SVITrainer(model, guide, one_row, num_samples=4, train_dataset=rows, eval_dataset=rows)
    expected = predict(model, guide, parts, num_samples=4, seed=one_row.seed)
    assert trainer.evaluate()["eval_nll"] == pytest.approx(
        -expected.log_mean_probs.gather(-1, batch["labels"][:4, None]).mean().item(), rel=1e-6
    )
    trainer.train()
    assert calibrate_scale(model, guide, parts, num_samples=8, bounds=(0.1, 0.2)).nll > 0
    assert MCDropout(model.network, probability=0.1)(parts, num_samples=3).logits.shape == (3, 4, 3)
