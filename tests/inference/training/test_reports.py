"""What reports and callbacks see of training: the terms of the loss, in real event files."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from bayes_lora.inference import SVITrainer
from tests.networks import build_network, build_pair

TERMS = ("nll", "kl_dirichlet", "kl_wishart", "kl_normal", "cooperative")


def rows() -> list[dict[str, Any]]:
    tokens = torch.randint(1, 50, (24, 7), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 7, "labels": int(row[0]) % 3} for row in tokens]


def trainer(folder: Path, callbacks: list[TrainerCallback] | None = None, **options: Any) -> SVITrainer:
    arguments = TrainingArguments(
        str(folder),
        **{
            "num_train_epochs": 2,
            "logging_steps": 2,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            **options,
        },
    )
    model, guide = build_pair(build_network(num_layers=1, dtype=torch.float32), sample_scale=0.2, kl_weight=0.1)
    return SVITrainer(
        model, guide, arguments, num_samples=2, train_dataset=rows(), eval_dataset=rows(), callbacks=callbacks
    )


def scalars(folder: Path) -> dict[tuple[str, float], float]:
    """(tag, step) -> value, from the event files of TensorBoard: records of length, checksum, Event, checksum."""
    found = {}
    for path in folder.rglob("events.out.tfevents.*"):
        for event in records(path.read_bytes()):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag, event.step] = value.simple_value
    return found


def records(content: bytes) -> Iterator[Any]:
    start = 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        yield Event.FromString(content[start + 12 : start + 12 + length])
        start += 12 + length + 4


def test_tensorboard_has_every_term_of_the_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, report_to="tensorboard", eval_strategy="epoch")
    run.train()
    found = scalars(tmp_path)
    losses = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in losses] == [2, 4, 6]
    for entry in losses:
        for name in ("loss", *TERMS, "learning_rate", "grad_norm"):
            assert found[f"train/{name}", entry["step"]] == pytest.approx(entry[name], rel=1e-6)  # files hold float32
        assert sum(entry[name] for name in TERMS) == pytest.approx(entry["loss"], rel=1e-5)
    evaluations = [entry for entry in run.state.log_history if "eval_nll" in entry]
    assert [entry["step"] for entry in evaluations] == [3, 6]
    for entry in evaluations:
        for name in ("nll", "accuracy", "point_nll"):
            assert found[f"eval/{name}", entry["step"]] == pytest.approx(entry[f"eval_{name}"], rel=1e-6)


class Listener(TrainerCallback):
    """Keeps the logs it is shown, and stops the run after four steps."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.append(dict(logs))
        if state.global_step == 4:
            control.should_training_stop = True


def test_a_callback_of_the_users_own_sees_the_terms_and_stops_the_run(tmp_path: Path) -> None:
    listener = Listener()
    run = trainer(tmp_path, [listener])
    run.train()
    assert run.state.global_step == 4
    logged = [logs for logs in listener.seen if "loss" in logs]
    assert len(logged) == 2
    for logs, entry in zip(logged, run.state.log_history, strict=False):
        assert {name: logs[name] for name in TERMS} == {name: entry[name] for name in TERMS}
        assert all(isinstance(logs[name], float) for name in TERMS)
        assert len({logs[name] for name in TERMS}) == len(TERMS)


@pytest.mark.parametrize(("learning_rate", "expected"), [(0.0, 3), (1e-2, 6)])
def test_early_stopping(tmp_path: Path, learning_rate: float, expected: int) -> None:
    run = trainer(
        tmp_path,
        [EarlyStoppingCallback(early_stopping_patience=2)],
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        metric_for_best_model="eval_point_nll",
        greater_is_better=False,
        load_best_model_at_end=True,
    )
    run.train()
    found = [entry["eval_point_nll"] for entry in run.state.log_history if "eval_point_nll" in entry]
    assert len(found) == expected
    assert run.state.best_metric == min(found)
    assert run.evaluate()["eval_point_nll"] == min(found)
