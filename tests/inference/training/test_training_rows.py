"""The number of training rows that objective "elbo" weighs its KL by: counted, compared, or asked for."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.utils.data import IterableDataset

import bayes_lora as bl
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import (
    FitOptions,
    ItemizedELBO,
    MeanFieldGuide,
    MonteCLoRAGuide,
    SVITrainer,
    fit,
    load_posterior,
)
from bayes_lora.inference.storage.posteriors import save_posterior
from bayes_lora.models import BayesianLoRA, Classification
from tests.inference.training.test_trainer import arguments, learnable_rows
from tests.networks import Batch, build_bert, build_network, build_pair

ELBO: dict[str, Any] = {"objective": "elbo", "kl_temperature": 0.01}


def counted(num_rows: int, **config: Any) -> BayesianLoRA:
    model, guide = build_pair(build_network(), **ELBO, **config)
    fit(model, guide, learnable_rows(num_rows), FitOptions(epochs=1, batch_size=8))
    return model


def test_it_is_taken_from_the_data() -> None:
    """And the fit is that of a model which was told."""
    model, told = counted(24), counted(24, num_train_examples=24)
    assert model.config.num_train_examples == model.sites.config.num_train_examples == 24
    assert model.config == told.config
    for (name, value), other in zip(model.named_parameters(), told.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_a_number_that_contradicts_the_data_is_an_error(tmp_path: Path) -> None:
    """A typo, 10 times too many: every row would count 10 times as much beside the prior."""
    message = r"num_train_examples=240 .* there are 24 rows .* each would count 10 times\. Leave it out"
    with pytest.raises(ConfigurationError, match=message):
        counted(24, num_train_examples=240)
    pair = build_pair(build_network(), **ELBO, num_train_examples=240)
    trainer = SVITrainer(*pair, arguments(tmp_path), train_dataset=learnable_rows(24))
    with pytest.raises(ConfigurationError, match=message):
        trainer.train()


def test_rows_count_not_batches_epochs_or_steps(tmp_path: Path) -> None:
    for options in ({"gradient_accumulation_steps": 2}, {"num_train_epochs": 3}, {"max_steps": 2}):
        pair = build_pair(build_network(), **ELBO)
        SVITrainer(*pair, arguments(tmp_path, **options), train_dataset=learnable_rows(24)).train()
        assert pair[0].config.num_train_examples == 24


def test_training_that_goes_on(tmp_path: Path) -> None:
    """With the same rows as it was; with other ones after that was said."""
    model, guide = build_pair(build_network(), **ELBO)
    fit(model, guide, learnable_rows(24), FitOptions(epochs=1))
    saved = save_posterior(model, guide, tmp_path / "posterior")
    torch.manual_seed(0)  # the base network of `build_network`
    model, guide = load_posterior(build_bert().double(), saved, is_trainable=True)
    with pytest.raises(ConfigurationError, match=r"model\.set_num_train_examples\(16\) where training goes on"):
        fit(model, guide, learnable_rows(16), FitOptions(epochs=1))
    model.set_num_train_examples(16)
    fit(model, guide, learnable_rows(16), FitOptions(epochs=1))
    assert model.config.num_train_examples == 16


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(learnable_rows(24))


def test_rows_that_cannot_be_counted_must_be_said(tmp_path: Path) -> None:
    pair = build_pair(build_network(), **ELBO)
    trainer = SVITrainer(*pair, arguments(tmp_path, max_steps=2), train_dataset=Stream())
    with pytest.raises(ConfigurationError, match=r"the dataset has no length\. Give it: .*num_train_examples="):
        trainer.train()
    pair[0].set_num_train_examples(24)
    trainer.train()


class Tokens(Classification):
    """A likelihood that counts something else than rows."""

    kind = "tokens_of_a_test"

    def num_observations(self, labels: Tensor) -> int:
        return 3 * len(labels)


def test_what_is_not_rows_is_not_counted_as_rows() -> None:
    for likelihood in (Tokens(), lambda logits, labels: Classification()(logits, labels)):
        model = BayesianLoRA(build_network(), bl.MonteCLoRAConfig(**ELBO), likelihood)
        guide = MonteCLoRAGuide(model)
        with pytest.raises(ConfigurationError, match="the likelihood cannot count them"):
            fit(model, guide, learnable_rows(8), FitOptions(epochs=1))
        model.set_num_train_examples(24)
        fit(model, guide, learnable_rows(8), FitOptions(epochs=1))


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
@pytest.mark.parametrize("kind", [MonteCLoRAGuide, MeanFieldGuide])
def test_a_plain_loop_has_to_say_it(batch: Batch, elbo: Any, kind: Any) -> None:
    model, _ = build_pair(build_network(), **ELBO)
    svi = SVI(model, kind(model), pyro.optim.Adam({"lr": 1e-3}), elbo())
    with pytest.raises(ConfigurationError, match=r"model\.set_num_train_examples\(len\(train_dataset\)\)"):
        svi.step(**batch)
    model.set_num_train_examples(20)
    assert svi.step(**batch) > 0


def test_a_paper_model_has_no_such_weight() -> None:
    model, guide = build_pair(build_network())
    fit(model, guide, learnable_rows(8), FitOptions(epochs=1))
    assert model.config.num_train_examples is None
    with pytest.raises(ConfigurationError, match="num_train_examples=8 belongs to objective='elbo'"):
        model.set_num_train_examples(8)


def test_the_weight_follows(batch: Batch) -> None:
    """Twice the rows, half the KL."""
    model, guide = build_pair(build_network(), **ELBO, num_train_examples=10)
    terms = []
    for number in (10, 20):
        model.set_num_train_examples(number)
        elbo = ItemizedELBO()
        torch.manual_seed(0)
        elbo.loss(model, guide, **batch)
        terms.append(elbo.terms)
    for name in ("kl_dirichlet", "kl_wishart", "kl_normal"):
        assert float(terms[0][name]) == pytest.approx(2 * float(terms[1][name]), rel=1e-12)
    assert terms[0]["nll"] == terms[1]["nll"]
