"""AdaLoRA with a likelihood in place of the network's own loss."""

from pathlib import Path
from typing import Any

import torch
from transformers import default_data_collator

from bayes_lora.inference import FitOptions, PointEstimate
from bayes_lora.inference.finetuning.adalora import active_ranks, orthogonality
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.inference.finetuning.point_files import load_trained, save_trained
from bayes_lora.inference.finetuning.point_networks import PointNetwork, fit_point, make_network
from bayes_lora.models import Classification, GaussianRegression, Likelihood
from tests.networks import build_bert, learnable_rows, make_batch

OPTIONS = FitOptions(epochs=2, batch_size=8, learning_rate=5e-2, log_every=1)


def base(num_labels: int) -> Any:
    torch.manual_seed(0)
    return build_bert(num_layers=1, num_labels=num_labels)


def build(likelihood: Likelihood | None, num_labels: int = 3) -> PointNetwork:
    return make_network("adalora", base(num_labels), ["classifier"], LoRAOptions(rank=3), likelihood=likelihood)


def test_it_has_the_loss_that_peft_gives_it_and_is_trained_to_the_same_network() -> None:
    """Of classes, the two are one; without the distance from orthogonal matrices they would not be."""
    own, ours = build(None), build(Classification())
    batch = make_batch()
    losses = [point.network(**batch)["loss"].detach() for point in (own, ours)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0.0)
    assert float(orthogonality(own.network).detach()) > 0.1 * float(losses[0])
    histories = [
        fit_point(point, learnable_rows(), OPTIONS, collate=default_data_collator).history for point in (own, ours)
    ]
    found = [torch.tensor([entry["loss"] for entry in history]) for history in histories]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert active_ranks(own.network) == active_ranks(ours.network.network)


def test_other_labels_trained_saved_and_loaded(tmp_path: Path) -> None:
    point = build(GaussianRegression(1.0), num_labels=1)
    rows = [{**row, "labels": float(row["labels"])} for row in learnable_rows()]
    first, *_, last = fit_point(point, rows, OPTIONS, collate=default_data_collator).history
    assert last["loss"] < first["loss"]
    save_trained(point, tmp_path)
    again = load_trained(base(1), tmp_path)
    batches = [default_data_collator(rows[:8])]
    assert torch.equal(PointEstimate(again.network)(batches).logits, PointEstimate(point.network)(batches).logits)
