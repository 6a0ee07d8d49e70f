"""Steps over several batches with unequally many labels, and what counts as an observation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer

from bayes_lora.adapters import unwrap
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import FitOptions, SVITrainer, fit, fit_network
from bayes_lora.models import CausalLanguageModel, LikelihoodNetwork, TokenClassification
from tests.heads import build
from tests.inference.training.test_trainer import Gradients, arguments
from tests.language import Collator, pair_of, unequal_rows


def first_gradients(folder: Path, rows: list[dict[str, Any]], accumulation: int, **keep: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    pair = build("language" if "tokens" not in keep else "tokens", objective="paper", sample_scale=0.0)
    kept = Gradients()
    options = {
        "per_device_train_batch_size": len(rows) // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 1,
        "max_grad_norm": 0.0,
    }
    trainer = keep.get("trainer", SVITrainer)(
        *pair, arguments(folder, **options), train_dataset=rows, data_collator=Collator(), callbacks=[kept]
    )
    trainer.train()
    return {name: value for name, value in kept.found.items() if "network" in name}


class MeanOfMeans(SVITrainer):
    """What the Trainer does by itself."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        return Trainer.get_batch_samples(self, *args, **kwargs)


@pytest.mark.parametrize("kind", ["language", "tokens"])
def test_accumulated_batches_with_unequally_many_labels_are_one_batch(kind: str, tmp_path: Path) -> None:
    rows = unequal_rows()
    keep: dict[str, Any] = {}
    if kind == "tokens":
        keep = {"tokens": True}
        rows = [{**row, "labels": [-100 if label < 0 else label % 3 for label in row["labels"]]} for row in rows]
    whole = first_gradients(tmp_path, rows, 1, **keep)
    parts = first_gradients(tmp_path, rows, 4, **keep)
    wrong = first_gradients(tmp_path, rows, 4, **keep, trainer=MeanOfMeans)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert any(not torch.allclose(wrong[name], value, rtol=1e-2) for name, value in whole.items())


def fitted(micro_batch_size: int | None, point: Callable[[Any], Any] | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model, guide = build("language", objective="paper", sample_scale=0.0)
    options = FitOptions(epochs=2, batch_size=4, micro_batch_size=micro_batch_size, max_grad_norm=1e9)
    if point is not None:
        fit_network(point(unwrap(model.network)), unequal_rows(), options, collate=Collator())
    else:
        fit(model, guide, unequal_rows(), options, collate=Collator())
    return {name: value.detach() for name, value in model.network.named_parameters() if value.requires_grad}


def test_a_fit_in_small_passes_is_the_same_fit() -> None:
    """And that of transformers' own loss, which divides by the labels of the whole step; so is that of a point."""
    whole = fitted(None)
    own, of_likelihood = (lambda network: network), (lambda network: LikelihoodNetwork(network, CausalLanguageModel()))
    for other in (fitted(1), fitted(2, own), fitted(None, of_likelihood), fitted(1, of_likelihood)):
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("likelihood", [CausalLanguageModel(), TokenClassification()], ids=["language", "tokens"])
def test_rows_of_which_nothing_is_a_label_teach_nothing(likelihood: Any, tmp_path: Path) -> None:
    model, guide = pair_of("llama")
    model.likelihood = likelihood
    rows = [{**row, "labels": [-100] * len(row["labels"])} for row in unequal_rows()]
    with pytest.raises(DataError, match="in all 8 rows every label is -100"):
        fit(model, guide, rows, FitOptions(epochs=1), collate=Collator())
    some = [{**rows[0], "labels": rows[0]["input_ids"]}, *rows[1:]]
    if isinstance(likelihood, CausalLanguageModel):  # of the others not all batches have a label
        fit(model, guide, some, FitOptions(epochs=1, batch_size=2), collate=Collator())


def test_the_bound_counts_label_tokens() -> None:
    model, guide = build("language")
    rows = unequal_rows()
    fit(model, guide, rows, FitOptions(epochs=1), collate=Collator())
    assert model.config.num_train_examples == sum(len(row["input_ids"]) - 3 for row in rows)
    model, guide = build("language", num_train_examples=8)
    with pytest.raises(ConfigurationError, match=r"num_train_examples=8 .* there are 64 labelled tokens to train on"):
        fit(model, guide, rows, FitOptions(epochs=1), collate=Collator())
    with pytest.raises(ConfigurationError, match=r"batch_size=4 is no multiple of micro_batch_size=3"):
        FitOptions(batch_size=4, micro_batch_size=3)
