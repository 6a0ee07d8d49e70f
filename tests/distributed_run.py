"""A small fit for several processes: `torchrun --nproc-per-node 2 tests/distributed_run.py FOLDER MODE`.

MODE "own": as a user trains. MODE "frozen": every loss sees the same posterior draw, whatever the process.
MODE "heads": the same with every likelihood, one after the other, each in a folder of its own.
Each process writes what it trained, the draws of its first step and the gradients of its first update.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainingArguments

from bayes_lora.inference import SVITrainer
from tests.heads import HEADS, build, rows_of
from tests.networks import build_network, build_pair


class FrozenDraws(SVITrainer):
    """The same draw for every loss, so that gradients of one and of two processes can be compared."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return super().compute_loss(*args, **kwargs)


class Recorder(TrainerCallback):
    """Keeps the first step's gradients and draw of LoRA-A."""

    def __init__(self, trainer_model: Any) -> None:
        self.model = trainer_model
        self.kept: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.kept:
            named = [*self.model.named_parameters()]
            self.kept = {f"gradient.{n}": p.grad.clone() for n, p in named if p.grad is not None}
            self.kept["draw"] = (
                self.model.model.sites.adapters[0].linear.draw.detach().clone(memory_format=torch.contiguous_format)
            )


def build_one(head: str | None) -> tuple[Any, list[dict[str, Any]]]:
    """Model, guide and rows of one of `tests.heads`, or of a classification."""
    if head is not None:
        return build(head), rows_of(head, 32)
    tokens = torch.randint(1, 50, (96, 7), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * 7, "labels": int(row[0]) % 3} for row in tokens]
    return build_pair(build_network(num_layers=1), sample_scale=0.3, kl_weight=0.01), rows


def run(folder: Path, mode: str, batch_size: int, head: str | None = None) -> Any:
    """Train for six steps, with a head for two, and write one file per process; returns the trainer."""
    torch.set_num_threads(1)
    (model, guide), rows = build_one(head)
    arguments = TrainingArguments(
        str(folder / "out"),
        max_steps=6 if head is None else 2,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-2,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = (FrozenDraws if mode == "frozen" else SVITrainer)(model, guide, arguments, train_dataset=rows)
    recorder = Recorder(trainer.svi)
    trainer.add_callback(recorder)
    trainer.train()
    trained = {f"trained.{name}": value.clone() for name, value in trainer.svi.state_dict().items()}
    save_file({**trained, **recorder.kept}, folder / f"rank{arguments.process_index}.safetensors")
    return trainer


def run_heads(folder: Path, batch_size: int) -> Any:
    """`run` for every head, with frozen draws; returns the last trainer."""
    for number, head in enumerate(HEADS):
        place = folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        trainer = run(place, "frozen", batch_size, head)
    return trainer


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    place, mode = Path(sys.argv[1]), sys.argv[2]
    trainer = run_heads(place, 8) if mode == "heads" else run(place, mode, 8)
    # A process that exits with its group open is now and then aborted: PyTorch's threads outlive Python.
    trainer.accelerator.end_training()
    # Even so, torch's threads may abort the process while Python ends: everything is written, so it ends here.
    os._exit(0)
