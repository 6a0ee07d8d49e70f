"""`+energy`, `+mahalanobis` and `+neighbours`: the method's predictions with another score, stored and found again."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.compare.method_spec import SUFFIXES
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.report import scores, write_report
from bayes_lora.experiments.compare.running import OUTSIDE, Results, run_study
from bayes_lora.experiments.compare.significance import significance
from bayes_lora.experiments.compare.study import Study
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.inference.storage.predictions import read_prediction, write_prediction
from bayes_lora.metrics.uncertainty import out_of_distribution_auroc
from tests.experiments.compare.studies import QUIET, make_study, named

WAYS = [name for name, suffix in SUFFIXES.items() if suffix.of_network]


@pytest.fixture(scope="module")
def results(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Results:
    written = ["map", *(f"map+{way}" for way in WAYS), "early_stopping+mahalanobis", "map+energy+temperature"]
    return run_study(study, parse_methods(",".join(written)), tmp_path_factory.mktemp("s") / "study", console=QUIET)


@pytest.mark.parametrize("way", WAYS)
def test_predictions_are_the_methods_and_the_score_its_own(way: str, results: Results) -> None:
    assert not results.failed
    method = named(f"map+{way}")
    plain, told = (results.read(of, 0).prediction for of in (named("map"), method))
    outside = results.read(method, 0, OUTSIDE).prediction
    assert torch.equal(plain.logits, told.logits)
    assert plain.foreignness is None
    assert told.foreignness.shape == (12,)
    assert outside.foreignness.shape == (14,)
    found = scores(results)[method][0]
    expected = out_of_distribution_auroc(told.foreignness, outside.foreignness)
    assert found["ood_auroc"] == found["ood_auroc_foreignness"] == expected
    assert found["nll"] == scores(results)[named("map")][0]["nll"]
    if way == "energy":
        torch.testing.assert_close(told.foreignness, -told.logits[0].double().logsumexp(-1))
        tempered = results.read(named("map+energy+temperature"), 0).prediction
        assert torch.equal(tempered.foreignness, told.foreignness)
        assert not torch.equal(tempered.mean_probs, told.mean_probs)


def test_it_is_tested_against_the_probabilities_of_another(results: Results) -> None:
    found = scores(results)
    contrast = significance(results, [named("map")])[named("map+neighbours"), named("map")]["ood_auroc"]
    expected = found[named("map+neighbours")][0]["ood_auroc"] - found[named("map")][0]["ood_auroc_entropy"]
    assert contrast.rows.estimate == pytest.approx(expected)
    write_report(results, [named("map")])
    assert "map+mahalanobis" in (results.folder / "table.md").read_text(encoding="utf-8")


def test_a_damaged_score_is_refused(results: Results, tmp_path_factory: pytest.TempPathFactory) -> None:
    stored = results.read(named("map+energy"), 0)
    path = tmp_path_factory.mktemp("files") / "one.parquet"
    write_prediction(path, stored)
    assert torch.equal(read_prediction(path).prediction.foreignness, stored.prediction.foreignness)
    without = replace(stored, prediction=replace(stored.prediction, foreignness=None))
    other = path.with_name("other.parquet")
    write_prediction(other, without)
    table, bare = pq.read_table(path), pq.read_table(other)
    pq.write_table(bare.append_column("foreignness", table["foreignness"]), other)
    with pytest.raises(DataError, match="its content and its checksum disagree"):
        read_prediction(other)


def test_what_has_no_classes_is_refused(data_dir: Path, base: str, tmp_path: Path) -> None:
    rows = [{"text": f"number {number}", "label": number / 8} for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = RowsSource(train_file=str(tmp_path / "rows.jsonl"), text_columns=("text",), task_type="regression")
    study = make_study(data_dir, base, source=source, outside=None)
    with pytest.raises(ConfigurationError, match=r"map\+energy takes one class for each row"):
        run_study(study, [named("map+energy")], tmp_path / "study", console=QUIET)
