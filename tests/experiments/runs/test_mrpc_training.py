"""The training engine on real rows: the Trainer against a plain Pyro loop, and half precision against full."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, TrainingArguments

from bayes_lora.experiments.runs.run_config import RunConfig
from bayes_lora.experiments.runs.runs import Run, new_run
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import TaskRows
from bayes_lora.inference import FitOptions, MonteCLoRAGuide, SVITrainer
from tests.experiments.tasks.test_real_tasks import VARIABLE
from tests.experiments.tasks.test_real_tasks import pytestmark as pytestmark

LEARNING_RATE = 1e-3


@cache
def rows() -> TaskRows:
    return RowsSource(task="mrpc", data_dir=os.environ[VARIABLE]).load()


def new(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Run, Any]:
    """MiniLM with a new posterior, and MRPC's training rows."""
    run = new_run(RunConfig(rows().task, "minilm", training=FitOptions(seed=seed)))
    if dtype != torch.float32:
        run.model.network.to(dtype)
        run = Run(run.config, run.model, MonteCLoRAGuide(run.model), run.processor)
    return run, run.encode(rows().train)


def trained(folder: Path, start: tuple[Run, Any], **options: Any) -> tuple[SVITrainer, Tensor]:
    """The losses of every step."""
    run, data = start
    defaults: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(str(folder), **defaults | options)
    collate = DataCollatorWithPadding(run.processor)
    trainer = SVITrainer(run.model, run.guide, arguments, train_dataset=data, data_collator=collate)
    torch.manual_seed(arguments.seed)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, torch.tensor(losses, dtype=torch.float64)


def test_trainer_and_plain_loop_have_the_same_losses(tmp_path: Path) -> None:
    run, data = new()
    options = {"max_steps": 50, "seed": 1, "per_device_train_batch_size": 32, "max_grad_norm": 0.0}
    trainer, losses = trained(tmp_path, (run, data), **options)

    twin, data = new()
    model, guide = twin.model.train(), twin.guide
    network = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        network,
        lr=LEARNING_RATE,
        weight_decay=0.0,
    )
    optimizer.add_param_group({"params": list(guide.parameters()), "lr": trainer.posterior_learning_rate})
    loss_of = TraceMeanField_ELBO()(model, guide)
    torch.manual_seed(1)
    loader: DataLoader[Any] = trainer.get_train_dataloader()
    expected = []
    for _, batch in zip(range(50), loader, strict=False):
        loss = loss_of(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert len(losses) == 50
    assert float(losses[-10:].mean()) < float(losses[:10].mean())
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["pure", "autocast"])
def test_bfloat16_stays_within_the_spread_of_seeds(tmp_path: Path, how: str) -> None:
    """Means over 40 steps: bfloat16 is nearer to float32 with the same seed than float32 is to other seeds."""
    options = {"max_steps": 200, "per_device_train_batch_size": 8}
    full = torch.stack([trained(tmp_path, new(seed), seed=seed, **options)[1] for seed in range(3)])
    half = new(0, torch.bfloat16) if how == "pure" else new(0)
    _, losses = trained(tmp_path, half, seed=0, bf16=how == "autocast", **options)
    assert len(losses) == 200
    assert losses.isfinite().all()
    windows, found = full.unflatten(1, (5, 40)).mean(-1), losses.unflatten(0, (5, 40)).mean(-1)
    spread = windows.amax(0) - windows.amin(0)
    assert (found <= windows.amax(0) + spread).all()
    assert (found >= windows.amin(0) - spread).all()
    assert ((found - windows[0]).abs() <= spread).all(), (found, windows)
