"""Every family of tasks keeps what `TaskFamily` promises: found by its file, so a new one is tested by being there."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from bayes_lora.checks import all_numbers
from bayes_lora.errors import ConfigurationError, LikelihoodError, TaskError
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.running import HELD_OUT, Results
from bayes_lora.experiments.families.decoder import DecoderFamily
from bayes_lora.experiments.families.family import TaskFamily, task_families
from bayes_lora.experiments.families.multiple_choice import ChoiceByText, ChoiceByWriting, MultipleChoice
from bayes_lora.experiments.rows.folders import class_rows
from bayes_lora.experiments.rows.rows import Row, read_rows, write_jsonl
from bayes_lora.experiments.runs.run_config import RunConfig
from bayes_lora.experiments.runs.runs import fit_run, load_run
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import Task
from bayes_lora.inference import FitOptions, load_inference_data
from bayes_lora.inference.diagnostics.arviz_bridge import group
from bayes_lora.inference.storage.predictions import StoredPrediction
from bayes_lora.models import Likelihood
from tests.experiments.commands import run
from tests.experiments.folders import KINDS

FAMILIES = pytest.mark.parametrize("family", task_families().values(), ids=task_families())
NUM_ROWS = 24


# What stands in the label column for the number 0, 1 or 2 of a text of 3, 4 or 5 words.
WRITTEN: dict[str, Callable[[int], str]] = {"token_classification": lambda number: " ".join("O12O1"[: number + 3])}


@pytest.fixture
def source(tmp_path: Path, family: TaskFamily) -> RowsSource:
    """Labels 0, 1 and 2: names of classes or of folders, counts, real numbers, or a class for each word."""
    if family.inputs.suffixes:
        folder = KINDS[family.name][0](tmp_path / "files", ("0", "1", "2"), NUM_ROWS // 3)
        return RowsSource(train_dir=str(folder), task_type=family.name)
    if isinstance(family, MultipleChoice):
        path = tmp_path / "rows.jsonl"
        write_jsonl(path, [_question(index) for index in range(NUM_ROWS)])
        return RowsSource(train_file=str(path), task_type=family.name)
    written = WRITTEN.get(family.name, str)
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"the {'very ' * (index % 3)}old house", written(index % 3)] for index in range(NUM_ROWS))
    return RowsSource(train_file=str(path), text_columns=("text",), task_type=family.name)


def _question(index: int) -> Row:
    """With two to four options, of which one in the middle is right."""
    options = ["red", "very old", "no house", "yes"][: 2 + index % 3]
    return {"question": f"the {'very ' * (index % 3)}old house", "options": options, "answer": options[index % 2]}


@pytest.fixture
def base_model(family: TaskFamily, base: str, decoder: str, tmp_path: Path) -> str:
    """A small one that reads such rows."""
    if family.inputs.suffixes:
        return KINDS[family.name][1](tmp_path / "base")
    return decoder if isinstance(family, DecoderFamily) else base


def written_rows(source: RowsSource, family: TaskFamily) -> list[Row]:
    if source.train_dir is not None:
        return class_rows(Path(source.train_dir), family.inputs.suffixes)
    return read_rows(Path(str(source.train_file)))


def test_unknown_types_are_named() -> None:
    with pytest.raises(TaskError, match=r"no type of task 'poetry'\. The types are .*classification"):
        Task("t", ("text",), "label", ("0", "1"), task_type="poetry")


@FAMILIES
def test_labels_are_read_and_read_back(family: TaskFamily, source: RowsSource) -> None:
    rows = source.load()
    assert Task.from_json(rows.task.to_json()) == rows.task
    assert len(rows.train) + len(rows.validation) == NUM_ROWS
    names = rows.task.label_names
    column = rows.task.label_column
    assert all(family.label_fault(row[column], names) is None for row in [*rows.train, *rows.validation])
    assert family.label_fault(None, names)
    written = written_rows(source, family)
    labels = family.labels_of(written, column, names, by_name=True)
    if family.reads_labels:  # a part of the text, which no tensor has before it is encoded
        assert labels is None
        return
    expected = [row[column] for row in family.with_labels(written, column, names, Path("rows"))]
    if labels.dim() == 2 and labels.min() < 0:  # behind the last word of a row
        assert [[one for one in row if one >= 0] for row in labels.tolist()] == expected
    else:
        assert labels.tolist() == expected
    assert family.labels_of([{"text": "no label"}], column, names, by_name=True) is None


# What a diagnosis shows of a kind of prediction, beside what it shows of all.
PICTURES = {
    "choices": {"reliability", "risk_coverage", "integral_transforms", "label_rates"},
    "numbers": {"quantiles", "integral_transforms", "labels"},
    "texts": {"surprise"},
}
OF_ALL = {"information", "relative_noise", "mixture_weights", "loss_terms", "uncertainty_map"}
FINDINGS = {"choices": "accuracy by confidence", "numbers": "share of labels in intervals", "texts": "surprise of the "}


def diagnosed(folder: Path, likelihood: Likelihood, prediction: Any) -> None:
    """The page, its pictures and its findings are those of the kind, and nothing is an error."""
    printed = json.loads(run("diagnose", folder, "--num-samples", "5", "--json").stdout)
    kinds = {name for name in PICTURES if getattr(likelihood, name)(prediction) is not None}
    assert kinds
    found = {path.stem for path in (folder / "diagnosis").glob("*.png")}
    several = {"reliability_labels"} if "label" in likelihood.label_dims else set()
    expected = OF_ALL.union(several, *(PICTURES[kind] for kind in kinds))
    assert {name for name in found if not name.startswith("covariances_r")} == expected
    page = (folder / "diagnosis" / "report.html").read_text(encoding="utf-8")
    assert "Most and least certain" in page
    findings = printed["findings"]
    assert {"prior to posterior", "mixture", "uncertainty map", "number of draws"} <= findings.keys()
    for kind in kinds:
        assert any(name.startswith(FINDINGS[kind]) for name in findings)
    assert ("rank of the labels" in findings) == (kinds != {"texts"})
    assert len(printed["left_out"]) == (1 if kinds == {"texts"} else 0)
    metrics = printed["metrics"]["posterior_predictive"]
    assert metrics.keys() == likelihood.metrics(prediction).keys()
    assert metrics["nll"]["low"] <= metrics["nll"]["value"] <= metrics["nll"]["high"]
    data = load_inference_data(folder / "diagnosis" / "inference_data.nc")
    density = group(data, "log_likelihood")["y"].to_numpy()[0]
    rows = torch.from_numpy(density).exp().mean(0).log()
    assert metrics["nll"]["value"] == pytest.approx(
        -float(rows.sum()) / likelihood.num_observations(prediction.labels), rel=1e-6
    )


@pytest.mark.shows(
    "head",
    "works",
    {
        "classification": "one of several classes",
        "regression": "numbers, Gaussian noise",
        "robust_regression": "numbers, noise of heavy tails",
        "multi_label": "several labels for a row",
        "ordinal": "grades",
        "token_classification": "a class for each word",
        "language_model": "the next token (language models)",
    },
)
@FAMILIES
def test_a_run_of_it(family: TaskFamily, source: RowsSource, base_model: str, tmp_path: Path) -> None:
    """Fitted, evaluated, saved, opened again, and the same then; and diagnosed."""
    rows = source.load()
    config = RunConfig(rows.task, base_model, training=FitOptions(epochs=1, batch_size=8), num_samples=3, source=source)
    metrics = fit_run(config, rows, tmp_path / "run", overwrite=False, console=Console(quiet=True))
    assert metrics["posterior_predictive"]["nll"] > 0
    assert metrics["point"].keys() == metrics["posterior_predictive"].keys()
    described = read_rows(tmp_path / "run" / "predictions.jsonl")
    assert {name for row in described for name in row} == {*rows.train[0], *family.output_columns}

    found = load_run(tmp_path / "run")
    assert type(found.model.likelihood) is type(family.likelihood(found.model.network, rows.task.label_names))
    prediction = found.predict(found.encode(rows.validation))
    assert found.model.likelihood.metrics(prediction) == metrics["posterior_predictive"]
    assert all_numbers(found.model.likelihood.pack(prediction))
    if isinstance(family, ChoiceByWriting):
        with pytest.raises(LikelihoodError, match="no density of the labels"):
            run("diagnose", tmp_path / "run")
    else:
        diagnosed(tmp_path / "run", found.model.likelihood, prediction)


COMPARED = (
    "map,temperature,mc_dropout,swag,deep_ensemble[members=2]+temperature,blob,monteclora_posthoc,"
    "monteclora_ensemble[members=2],monteclora+calibrated+temperature,early_stopping,checkpoint_ensemble[members=2]"
)


# How options are scored makes no difference to a comparison; and a random network writes no answer that can be read.
COMPARED_FAMILIES = {
    name: of for name, of in task_families().items() if not isinstance(of, ChoiceByText | ChoiceByWriting)
}


def compared_by(family: TaskFamily) -> str:
    """Names of methods: every way of predicting."""
    if family.takes_temperature:
        return COMPARED
    kept = COMPARED.replace("temperature,mc", "mc").replace("+temperature", "")
    return kept.replace("monteclora_ensemble[members=2],", "")  # of which draws have to be kept apart


@pytest.mark.filterwarnings("ignore:all of the .* rows that a temperature was to be fitted to are predicted right")
@pytest.mark.parametrize("family", COMPARED_FAMILIES.values(), ids=COMPARED_FAMILIES)
def test_it_is_compared(family: TaskFamily, source: RowsSource, base_model: str, tmp_path: Path) -> None:
    """Every way of predicting, on the same rows; what is stored is what is judged."""
    out = tmp_path / "study"
    rows = ["compare", "--task-type", family.name]
    if family.inputs.suffixes:
        rows += ["--train-dir", str(source.train_dir)]
    else:
        rows += ["--train-file", str(source.train_file)]
        rows += ["--text-columns", "text"] if family.renames_columns else []
    command = [
        *rows,
        "--base-model",
        base_model,
        "--methods",
        compared_by(family),
        "--seeds",
        "0",
        "--out",
        out,
        "--json",
    ]
    quick = ["--epochs", "2", "--batch-size", "8", "--num-samples", "4", "--held-out", "0.3", "--rank", "2"]
    found = json.loads(run(*command, *quick, "--lr", "1e-2").stdout)
    assert (found["failed"], found["missing"]) == ([], [])
    methods = parse_methods(compared_by(family))
    assert found["methods"].keys() == {method.label for method in methods}
    results = Results(out, tuple(methods), (0,), outside=())
    for method in methods:
        stored, numbers = results.read(method, 0), found["methods"][method.label]["0"]
        assert stored.likelihood.kind == results.read(methods[0], 0).likelihood.kind
        assert stored.likelihood.all_metrics(stored.prediction)["nll"] == pytest.approx(numbers["nll"], rel=1e-12)
        if method.tempered:
            before, after = (results.read(of, 0, HELD_OUT) for of in (method.untempered, method))
            nlls = [of.likelihood.losses(of.prediction)["nll"].mean() for of in (before, after)]
            assert nlls[1] <= nlls[0] + 1e-9
    (deep,) = (method for method in methods if method.name == "deep_ensemble")
    point, *members = (density for of in (methods[0], deep.untempered) for density in densities(results.read(of, 0)))
    assert torch.equal(point, members[0])
    assert not torch.equal(*members)
    names = {path.name for path in out.iterdir()}
    assert {"table.md", "significance.csv", "overview.png"} <= names
    assert ("reliability.png" in names) == family.takes_temperature  # where predictions keep enough for either
    refused = {"base_rate": family.of_classes, "map+temperature": family.takes_temperature}
    refused["monteclora_ensemble"] = family.takes_temperature
    if family.reads_labels:
        with pytest.raises(ConfigurationError, match="--outside mrpc has classes and no completions"):
            run(*rows, "--base-model", base_model, "--outside", "mrpc", "--out", tmp_path / "other")
    for name in [name for name, taken in refused.items() if not taken]:
        with pytest.raises(ConfigurationError, match=r"Leave it out of --methods"):
            run(*rows, "--base-model", base_model, "--methods", name, "--out", tmp_path / "other")


def densities(stored: StoredPrediction) -> list[Tensor]:
    """ln p(labels) of the rows under each sample, (row,)."""
    alone = (stored.likelihood.unpack(of, stored.prediction.labels) for of in stored.packed.split(1))
    return [stored.likelihood.row_log_density(each) for each in alone]


@FAMILIES
def test_a_temperature_goes_with_likelihoods_that_say_what_it_does(family: TaskFamily) -> None:
    likelihood = family.likelihood(torch.nn.Identity(), ("0", "1", "2"))
    assert family.takes_temperature == (type(likelihood).rescaled is not Likelihood.rescaled)
