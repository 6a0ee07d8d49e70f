"""Batches by length: every row once an epoch, little padding, and the same batches in a resumed run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bayes_lora.inference import FitOptions, fit
from bayes_lora.inference.training.length_groups import LengthGroups
from bayes_lora.inference.training.sealed_trainer import SealedTrainer
from tests.networks import build_network, build_pair

LENGTHS = [2 + (7 * i) % 11 for i in range(60)]


def padding(order: list[int], batch_size: int) -> int:
    batches = [[LENGTHS[row] for row in order[start : start + batch_size]] for start in range(0, 60, batch_size)]
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches)


def test_every_row_once_with_little_padding() -> None:
    groups = LengthGroups(LENGTHS, 5, seed=0)
    orders = []
    for epoch in range(3):
        groups.set_epoch(epoch)
        orders.append(list(groups))
        assert list(groups) == orders[-1]
        assert sorted(orders[-1]) == list(range(60))
    assert len(groups) == 60
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != list(LengthGroups(LENGTHS, 5, seed=1))
    at_random = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    assert max(padding(order, 5) for order in orders) < padding(at_random, 5) / 2


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(1, 50, (length,), generator=generator) for length in LENGTHS]
    return [{"input_ids": row.tolist(), "labels": int(row[0]) % 3} for row in tokens]


class Collate:
    """Pads, and remembers how wide the batches were."""

    def __init__(self) -> None:
        self.widths: list[int] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        ids = pad_sequence([torch.tensor(example["input_ids"]) for example in examples], batch_first=True)
        self.widths.append(ids.shape[1])
        labels = torch.tensor([example["labels"] for example in examples])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def run(folder: Path, *, grouped: bool = True) -> tuple[list[Tensor], list[int]]:
    """Three epochs of twelve steps; a checkpoint every five, in the midst of epochs."""
    collate = Collate()
    model, guide = build_pair(build_network(num_layers=1, dropout=0.1), sample_scale=0.2, kl_weight=0.01)
    options = FitOptions(
        epochs=3, batch_size=5, learning_rate=1e-2, save_every=5, keep_checkpoints=None, group_by_length=grouped
    )
    fit(model, guide, rows(), options, collate=collate, checkpoints=folder)
    return [p.detach().clone() for module in (model, guide) for p in module.parameters()], collate.widths


def test_the_batches_of_a_fit(tmp_path: Path) -> None:
    (_, grouped), (_, at_random) = run(tmp_path / "grouped"), run(tmp_path / "random", grouped=False)
    assert sum(grouped) < 0.8 * sum(at_random)
    assert grouped[:12] != grouped[12:24] != grouped[24:36]


def resumed(folder: Path) -> list[Tensor]:
    """Trained again from the checkpoint in the midst of the second epoch."""
    for step in (20, 25, 30, 35, 36):
        shutil.rmtree(folder / f"checkpoint-{step}")
    return run(folder)[0]


def test_a_resumed_fit_sees_the_same_batches(tmp_path: Path) -> None:
    whole, _ = run(tmp_path)
    again = resumed(tmp_path)
    assert all(torch.equal(first, second) for first, second in zip(whole, again, strict=True))


def test_transformers_own_sampler_would_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SealedTrainer, "_get_train_sampler")
    whole, _ = run(tmp_path)
    again = resumed(tmp_path)
    assert not all(torch.equal(first, second) for first, second in zip(whole, again, strict=True))
