"""Rows from elsewhere, from files: several sets of them, what they are told by, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from bayes_lora.errors import ConfigurationError, DataError, RunExistsError
from bayes_lora.experiments.command_line.rows import outside_set
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.report import write_report
from bayes_lora.experiments.compare.running import EVALUATED, Results, outside_part, run_study
from bayes_lora.experiments.compare.significance import significance
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.metrics.uncertainty import out_of_distribution_auroc
from tests.experiments.commands import run
from tests.experiments.compare.studies import QUIET, make_study, named

ROWS = [{"sentence1": f"a line of {word}", "sentence2": "and no label", "label": None} for word in "abcdefg"]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, Path], ...]:
    folder = tmp_path_factory.mktemp("outside")
    return ("lines", written(folder / "one.jsonl", ROWS)), ("few", written(folder / "two.jsonl", ROWS[:3]))


@pytest.fixture(scope="module")
def results(
    files: tuple[tuple[str, Path], ...], data_dir: Path, base: str, tmp_path_factory: pytest.TempPathFactory
) -> Results:
    study = make_study(data_dir, base, outside_files=files)
    folder = tmp_path_factory.mktemp("studies") / "study"
    return run_study(study, parse_methods("map,temperature"), folder, console=QUIET)


def test_each_set_has_its_columns(results: Results) -> None:
    found = write_report(results, [named("map")])
    assert results.outside == ("", "lines", "few")
    scores = found[named("map")][0]
    evaluated = results.read(named("map"), 0, EVALUATED).prediction
    for name, count in (("", 14), ("lines", 7), ("few", 3)):
        outside = results.read(named("map"), 0, outside_part(name)).prediction
        assert outside.labels is None
        assert outside.logits.shape[1] == count
        expected = out_of_distribution_auroc(evaluated.total_entropy, outside.total_entropy)
        suffix = f":{name}" if name else ""
        assert scores[f"ood_auroc{suffix}"] == scores[f"ood_auroc_entropy{suffix}"] == pytest.approx(expected)
    table = (results.folder / "table.md").read_text(encoding="utf-8")
    assert " | AUROC OOD | AUROC OOD lines | AUROC OOD few | " in table.splitlines()[0]
    tested = significance(results, [named("map")])[named("temperature"), named("map")]
    assert {"ood_auroc", "ood_auroc:lines", "ood_auroc:few"} <= tested.keys()
    assert tested["ood_auroc:few"].rows.estimate == pytest.approx(0)  # a temperature keeps the order of two classes


def test_a_study_knows_its_sets_by_name_and_content(
    results: Results, files: tuple[tuple[str, Path], ...], data_dir: Path, base: str, tmp_path: Path
) -> None:
    moved = tuple((name, written(tmp_path / path.name, ROWS[: 7 if name == "lines" else 3])) for name, path in files)
    same = make_study(data_dir, base, outside_files=moved)
    assert same.to_json()["outside_sets"] == ["lines", "few"]
    assert "outside_sets" not in make_study(data_dir, base).to_json()
    again = run_study(same, parse_methods("map,temperature"), results.folder, console=QUIET, max_hours=0)
    assert not again.missing
    written(moved[0][1], ROWS[:6])
    with pytest.raises(RunExistsError):
        run_study(same, parse_methods("map"), results.folder, console=QUIET, max_hours=0)


def test_what_an_option_says() -> None:
    assert outside_set("oos=some/where.jsonl.gz") == ("oos", Path("some/where.jsonl.gz").resolve())
    assert outside_set("some/where.jsonl.gz") == ("where", Path("some/where.jsonl.gz").resolve())


@pytest.mark.parametrize("names", [("a", "a"), ("",), ("two words",), ("a/b",)])
def test_names_that_are_none(names: tuple[str, ...], data_dir: Path, base: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--outside-file: .* must be a name of its own"):
        make_study(data_dir, base, outside_files=tuple((name, Path("rows.jsonl")) for name in names))


def test_rows_of_another_kind_are_refused(data_dir: Path, base: str, tmp_path: Path) -> None:
    one = (("one", Path("rows.jsonl")),)
    source = RowsSource(train_file="rows.jsonl", task_type="language_model")
    with pytest.raises(ConfigurationError, match=r"task type language_model reads its labels\. Drop it"):
        make_study(data_dir, base, source=source, outside=None, outside_files=one)
    source = RowsSource(train_dir="images", task_type="image")
    with pytest.raises(ConfigurationError, match=r"task type image reads files in folders\. Drop it"):
        make_study(data_dir, base, source=source, outside=None, outside_files=one)
    other = written(tmp_path / "other.jsonl", [{"sentence1": "alone"}])
    with pytest.raises(DataError, match=r"other\.jsonl, row 1 has no column 'sentence2'"):
        make_study(data_dir, base, outside_files=(("other", other),)).load()


def test_the_command_line(base: str, tmp_path: Path) -> None:
    rows = [{"text": f"this is {word}", "label": word} for word in ("good", "bad") * 12]
    train, outside = written(tmp_path / "rows.jsonl", rows), written(tmp_path / "foreign.jsonl", [{"text": "a lamp"}])
    command = ["compare", "--train-file", train, "--text-columns", "text", "--outside-file", outside, "--seeds", "0"]
    command += ["--outside-file", f"again={outside}", "--base-model", base, "--methods", "map", "--epochs", "1"]
    found = json.loads(run(*command, "--held-out", "0.25", "--out", tmp_path / "study", "--json").stdout)
    scores = found["methods"]["map"]["0"]
    assert scores["ood_auroc:foreign"] == scores["ood_auroc:again"]
