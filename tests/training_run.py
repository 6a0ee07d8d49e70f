"""A small fit with checkpoints, as a process that can be killed: `python -m tests.training_run FOLDER`."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset

from bayes_lora.inference import FitOptions, fit
from tests.networks import build_network, build_pair

OPTIONS = FitOptions(epochs=15, batch_size=8, learning_rate=1e-2, log_every=2, save_every=2, seed=3)
NUM_STEPS = 120


class Rows(Dataset[dict[str, Any]]):
    """64 rows; says on stdout when one is read, so that whoever watches knows how far training is."""

    def __init__(self, announce: bool = False) -> None:
        self.tokens = torch.randint(1, 50, (64, 7), generator=torch.Generator().manual_seed(0))
        self.announce = announce

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.announce:
            print(index, flush=True)
        row = self.tokens[index]
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[0]) % 3}


def run(folder: Path, announce: bool = False) -> dict[str, torch.Tensor]:
    """Fit with dropout and checkpoints in `folder`, from the newest whole one there; returns what was trained."""
    torch.set_num_threads(1)
    model, guide = build_pair(build_network(num_layers=1, dropout=0.1), sample_scale=0.2, kl_weight=0.01)
    result = fit(model, guide, Rows(announce), OPTIONS, checkpoints=folder / "checkpoints")
    assert [entry["step"] for entry in result.history] == list(range(2, NUM_STEPS + 1, 2))
    named = [*model.named_parameters(), *guide.named_parameters()]
    return {name: value.detach().clone() for name, value in named if value.requires_grad}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    save_file(run(target, announce=True), target / "final.safetensors")
