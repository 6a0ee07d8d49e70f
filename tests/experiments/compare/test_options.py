"""Every method on a tiny study of multiple choice: what works, and what is refused and why."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.fitting import Fitting
from bayes_lora.experiments.compare.method_spec import SUFFIXES
from bayes_lora.experiments.compare.methods import METHODS
from bayes_lora.experiments.compare.study import EncodedRows
from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.uncertainty import outside_aurocs
from bayes_lora.models.likelihoods.option_passes import OPTIONS
from tests.experiments.choice_files import write_tasks
from tests.experiments.compare.studies import make_study, named

REFUSED = {
    "base_rate": "their places say nothing of them",
    "laplace_last_layer": "a language model's last layer is the base model's",
    "vbll": "a language model's head is the base model's",
    "adapter": "its bottlenecks have places in encoders only",
    "map+mahalanobis": "training rows have no classes to be near to",
}
"""And a part of why."""
# Few members are as good as many here.
MEMBERS = ("checkpoint_ensemble", "deep_ensemble", "monteclora_ensemble")
WORKS = [
    *(f"{name}[members=2]" if name in MEMBERS else name for name in METHODS if name not in REFUSED),
    *("monteclora[objective=elbo]", "laplace[link=probit]", "laplace[structure=diagonal]", "laplace[link=joint]"),
    *("monteclora+calibrated", "monteclora+mean", "map+energy", "map+neighbours"),
]
CELLS = {name: f"`{name.removesuffix('[members=2]')}`" for name in WORKS}
# What goes by other ways where options are texts.
OF_TEXTS = ("laplace", "map+neighbours", "scalabl")


def fitting_of(scoring: str, decoder: str, folder: Path) -> Fitting:
    """Six steps at most, on rows of two to four options."""
    write_tasks(folder)
    source = RowsSource(task="arc_easy", data_dir=str(folder), scoring=scoring)
    study = make_study(
        folder, decoder, source=source, outside=None, lora=LoRAOptions(rank=2, dropout=0.2, targets="q_proj,v_proj")
    )
    rows = study.load()
    tokenizer = load_base_model(decoder, rows.task.label_names, rows.task.task_type).processor
    fit, held_out = (EncodedRows.of(rows.task, part, tokenizer, study) for part in study.split(rows, 0))
    return Fitting(study, rows.task, fit, held_out, folder / "trained")


@pytest.fixture(scope="module")
def fitting(decoder: str, tmp_path_factory: pytest.TempPathFactory) -> Fitting:
    """By letters."""
    return fitting_of("letter", decoder, tmp_path_factory.mktemp("letters"))


def evaluated(fitting: Fitting) -> EncodedRows:
    rows = fitting.study.load()
    tokenizer = load_base_model(fitting.study.base_model, rows.task.label_names, rows.task.task_type).processor
    return EncodedRows.of(rows.task, rows.evaluated, tokenizer, fitting.study)


def assert_works(name: str, fitting: Fitting) -> None:
    """Probabilities of the options that each row has, the same in other batches, and found again as they were."""
    method, rows = named(name), evaluated(fitting)
    method.check(fitting)
    fitted = method.build(fitting, 0)
    prediction = fitted.predictor(rows.loader(), num_samples=4, seed=1)
    samples = {"one": 1, "draws": 4}.get(method.spec.samples) or method.value("members")
    samples = 1 if method.at_mean or method.options == (("link", "probit"),) else samples
    assert prediction.logits.shape == (samples, 20, 4)
    counts = torch.cat([(batch[OPTIONS] != UNLABELLED).any(-1).sum(-1) for batch in rows.loader()])
    lacking = torch.arange(4) >= counts.unsqueeze(1)
    assert counts.unique().tolist() == [2, 3, 4]
    assert torch.equal(prediction.mean_probs == 0, lacking)
    torch.testing.assert_close(prediction.mean_probs.sum(-1), torch.ones(20, dtype=torch.double))
    # All metrics are numbers, and so is whatever tells rows from elsewhere.
    likelihood = fitting.task.family.likelihood(None, ())  # type: ignore[arg-type]
    metrics = likelihood.all_metrics(prediction)
    assert all(value == value for value in metrics.values())
    told = likelihood.uncertainty(prediction)
    assert ("foreignness" in told) == bool(method.told_by)
    assert outside_aurocs(told, told)["ood_auroc"] == 0.5

    other = fitted.predictor(replace(rows, batch_size=5).loader(), num_samples=4, seed=1)
    same = torch.allclose(other.probs, prediction.probs, rtol=1e-3, atol=1e-4)
    assert same == method.spec.any_batches
    again = method.build(fitting, 0).predictor(rows.loader(), num_samples=4, seed=1)
    assert torch.equal(again.logits, prediction.logits)


@pytest.mark.shows("options", "works", CELLS)
@pytest.mark.parametrize("name", WORKS)
def test_works(name: str, fitting: Fitting) -> None:
    assert_works(name, fitting)


@pytest.mark.parametrize("scoring", ["likelihood", "likelihood_per_token"])
def test_options_that_are_texts(scoring: str, decoder: str, tmp_path: Path) -> None:
    fitting = fitting_of(scoring, decoder, tmp_path)
    for name in OF_TEXTS:
        assert_works(name, fitting)


@pytest.mark.shows("options", "refused", {name: f"`{name}`" for name in REFUSED})
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str, fitting: Fitting) -> None:
    with pytest.raises(
        ConfigurationError, match=f"is nothing for a row's own options: .*{REFUSED[name]}.*Leave it out"
    ):
        named(name).check(fitting)


def test_every_method_and_suffix_is_one_or_the_other() -> None:
    assert set(METHODS) <= {name.partition("[")[0] for name in (*WORKS, *REFUSED)}
    assert set(SUFFIXES) == {name.rpartition("+")[2] for name in (*WORKS, *REFUSED, "map+temperature") if "+" in name}
