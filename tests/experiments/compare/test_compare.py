"""The whole comparison: its files, going on with it, and its numbers from the stored predictions."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bayes_lora.errors import ConfigurationError, RunExistsError
from bayes_lora.experiments.compare.methods import Method, parse_methods
from bayes_lora.experiments.compare.report import latex, markdown, markdown_differences, scores, write_report
from bayes_lora.experiments.compare.running import EVALUATED, Results, run_study
from bayes_lora.experiments.compare.significance import significance
from bayes_lora.inference import all_metrics
from bayes_lora.inference.bootstrap import Difference
from bayes_lora.inference.metrics import example_losses
from tests.experiments.commands import run
from tests.experiments.compare.studies import make_study

METHODS = "map,temperature,mc_dropout,monteclora[sample_scale=0.1]+temperature,monteclora_calibrated"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def done(data_dir: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two seeds of five methods."""
    folder = tmp_path_factory.mktemp("studies") / "study"
    results = run_study(make_study(data_dir, base, seeds=(0, 1)), parse_methods(METHODS), folder, console=QUIET)
    write_report(results, [Method("map"), Method("map", tempered=True)])
    return results


def copy_of(results: Results, folder: Path) -> Results:
    shutil.copytree(results.folder, folder)
    return Results(folder, results.methods, results.seeds, results.with_outside)


def test_every_prediction_is_there_with_its_cost(done: Results) -> None:
    assert not done.missing
    for method in done.methods:
        for seed in (0, 1):
            stored = done.read(method, seed)
            assert (stored.about.method, stored.about.seed) == (method.label, seed)
            assert stored.prediction.logits.shape[1:] == (12, 2)
            assert done.read(method, seed, "outside").prediction.labels is None
            assert stored.about.train_seconds > 0
            assert stored.about.peak_memory_bytes > 2**27  # Python and torch alone take more
    ids = {done.read(method, 0).row_ids for method in done.methods}
    assert len(ids) == 1


def test_sessions(done: Results, tmp_path: Path, data_dir: Path, base: str) -> None:
    (session,) = json.loads((done.folder / "sessions.json").read_text(encoding="utf-8"))
    assert {"command", "commit", "processor", "packages", "date"} <= session.keys()
    jobs = {(job["method"], job["seed"]) for job in session["jobs"]}
    assert jobs == {(method.untempered.label, seed) for method in done.methods for seed in (0, 1)}
    assert 0 < sum(job["seconds"] for job in session["jobs"]) <= session["seconds"] + 1
    again = copy_of(done, tmp_path / "again")
    (again.folder / "predictions" / "mc_dropout" / "seed-1-evaluated.parquet").unlink()
    run_study(make_study(data_dir, base, seeds=(0, 1)), parse_methods(METHODS), again.folder, console=QUIET)
    first, second = json.loads((again.folder / "sessions.json").read_text(encoding="utf-8"))
    assert first == session
    assert [(job["method"], job["seed"]) for job in second["jobs"]] == [("mc_dropout", 1)]


def test_temperature_keeps_the_class_and_is_chosen_on_held_out_rows(done: Results) -> None:
    plain, tempered = (done.read(Method("map", tempered=tempered), 0).prediction for tempered in (False, True))
    temperature = done.chosen(Method("map", tempered=True), 0)["temperature"]
    assert torch.equal(plain.mean_probs.argmax(-1), tempered.mean_probs.argmax(-1))
    expected = (plain.logits[0].double() / temperature).softmax(-1)
    torch.testing.assert_close(tempered.mean_probs, expected, rtol=1e-6, atol=1e-9)
    held_out = done.read(Method("map"), 0, "held-out").prediction
    assert held_out.labels is not None

    def nll(at: float) -> float:
        probs = (held_out.logits[0].double() / at).softmax(-1)
        return float(example_losses(probs, held_out.labels)["nll"].mean())  # type: ignore[arg-type]

    assert nll(temperature) <= min(nll(0.9 * temperature), nll(min(1e3, 1.1 * temperature)), nll(1.0)) + 1e-9


def test_numbers_follow_from_the_stored_predictions(done: Results) -> None:
    found = scores(done)
    with (done.folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    method = done.methods[3]
    inside, outside = done.read(method, 1).prediction, done.read(method, 1, "outside").prediction
    expected = all_metrics(inside, outside)
    row = next(row for row in rows if row["method"] == method.label and row["seed"] == "1")
    for metric, value in expected.items():
        assert found[method][1][metric] == pytest.approx(value, nan_ok=True)
        assert float(row[metric]) == pytest.approx(value, nan_ok=True)
    assert "temperature=" in row["chosen"]


def test_tables(done: Results) -> None:
    found = scores(done)
    page = (done.folder / "table.md").read_text(encoding="utf-8")
    means, *_ = page.partition("\n## Minus")
    assert means == markdown(found)
    lines = means.splitlines()
    assert len(lines) == 2 + 5
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    accuracies = [100 * found[Method("map")][seed]["accuracy"] for seed in (0, 1)]
    assert f"{sum(accuracies) / 2:.1f}" in lines[2]
    assert "±" in lines[2]
    nll = {method: sum(of[seed]["nll"] for seed in (0, 1)) / 2 for method, of in found.items()}
    best = min(nll, key=lambda method: nll[method])
    line = next(line for line in lines if line.startswith(f"| {best.label} "))
    assert f"**{nll[best]:.3f}**" in line
    table = latex(found)
    assert table.count(r"\\") == 6
    assert r"mc\_dropout" in table


def test_significance_is_against_the_references(done: Results) -> None:
    found = significance(done, [Method("map")])
    assert found.keys() == {(method, Method("map")) for method in done.methods[1:]}
    tested = {"accuracy", "nll", "brier", "aurc", "misclassification_auroc_entropy", "ood_auroc_entropy"}
    for (method, _), metrics in found.items():
        assert metrics.keys() == tested
        for metric, difference in metrics.items():
            means = [scores(done)[of][seed][metric] for of in (method, Method("map")) for seed in (0, 1)]
            assert difference.estimate == pytest.approx((means[0] + means[1] - means[2] - means[3]) / 2)
    with (done.folder / "significance.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["minus"] for row in rows] == ["map"] * 4 * 6 + ["temperature"] * 4 * 6
    # One temperature leaves the order of the rows as it is.
    same = [row for row in rows if (row["method"], row["minus"]) == ("temperature", "map")]
    assert {row["metric"]: float(row["p_value"]) for row in same}["aurc"] == 1


def test_differences_for_people_to_read(done: Results) -> None:
    page = (done.folder / "table.md").read_text(encoding="utf-8")
    found = significance(done, [Method("map"), Method("map", tempered=True)])
    assert page.endswith(markdown_differences(found))
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## Minus map", "## Minus temperature"]
    assert {path.name for path in done.folder.glob("minus_*")} == {"minus_map.png", "minus_temperature.png"}
    table = page.partition("\n## Minus map\n")[2].partition("\n## ")[0]
    columns, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert [name for name, *_ in rows] == [method.label for method in done.methods[1:]]
    for method, (_, *cells) in zip(done.methods[1:], rows, strict=True):
        nll = found[method, Method("map")]["nll"]
        assert cells[columns.index("NLL") - 1].strip("*") == f"{nll.estimate:+.3f} [{nll.low:+.3f}, {nll.high:+.3f}]"


def test_what_is_better_and_what_is_worse_is_marked() -> None:
    numbers = {"accuracy": (0.02, 0.01, 0.03), "nll": (0.2, 0.1, 0.3), "brier": (-0.1, -0.2, 0.1)}
    metrics = {name: Difference(*three, 0.01, 100) for name, three in numbers.items()}
    line = markdown_differences({(Method("laplace"), Method("map")): metrics}).splitlines()[-1]
    assert line == (
        "| laplace | **+2.0 [+1.0, +3.0]** | *+0.200 [+0.100, +0.300]* | -0.100 [-0.200, +0.100] |"
    )  # higher accuracy is better, higher NLL worse, and of the last one the sign is not known


def test_it_goes_on_and_makes_only_what_is_missing(done: Results, data_dir: Path, base: str, tmp_path: Path) -> None:
    results = copy_of(done, tmp_path / "study")
    tempered, calibrated = done.methods[3], done.methods[4]
    before = results.read(tempered, 1).prediction.logits, results.read(calibrated, 0).prediction.logits
    kept = results.path(Method("map"), 0, EVALUATED).stat().st_mtime_ns
    results.path(tempered, 1, EVALUATED).unlink()
    results.path(calibrated, 0, EVALUATED).unlink()
    assert results.missing == [(calibrated, 0), (tempered, 1)]
    study = make_study(data_dir, base, seeds=(0, 1))
    again = run_study(study, parse_methods(METHODS), results.folder, console=QUIET)
    assert not again.missing
    assert torch.equal(again.read(tempered, 1).prediction.logits, before[0])
    assert torch.equal(again.read(calibrated, 0).prediction.logits, before[1])
    assert again.path(Method("map"), 0, EVALUATED).stat().st_mtime_ns == kept


@pytest.mark.parametrize("part", ["outside.parquet", "held-out.parquet", "chosen.json"])
def test_any_part_that_is_missing_is_made_again(
    done: Results, data_dir: Path, base: str, tmp_path: Path, part: str
) -> None:
    results = copy_of(done, tmp_path / "study")
    path = results.folder / "predictions" / "temperature" / f"seed-1-{part}"
    before = path.read_bytes()
    path.unlink()
    assert results.missing == [(Method("map", tempered=True), 1)]
    again = run_study(make_study(data_dir, base, seeds=(0, 1)), parse_methods(METHODS), results.folder, console=QUIET)
    assert not again.missing
    assert path.read_bytes() == before


def test_a_method_that_fails_does_not_stop_the_others(data_dir: Path, base: str, tmp_path: Path) -> None:
    study, folder = make_study(data_dir, base), tmp_path / "study"
    run_study(study, parse_methods("map"), folder, console=QUIET)
    trained = folder / "trained" / "map" / "seed-0" / "trained" / "trained.safetensors"
    trained.write_bytes(trained.read_bytes()[:-8])
    results = run_study(study, parse_methods("mc_dropout,monteclora"), folder, console=QUIET)
    assert [method.label for method, _ in results.failed] == ["mc_dropout"]
    assert "CheckpointFileError" in next(iter(results.failed.values()))
    assert [method.label for method, _ in results.missing] == ["mc_dropout"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("monteclora[objective=elbos]", "elbos"),
        ("monteclora[epochs=0.5]", "epochs"),
        ("mc_dropout[probability=2]", "above 0 and below 1"),
        ("mc_dropout[probability=high]", "above 0 and below 1"),
        ("checkpoint_ensemble[members=20]", r"needs 20 checkpoints, and the point estimate keeps \d\."),
        ("laplace[structure=dense]", "structure"),
        ("laplace[link=logit]", "link"),
        ("deep_ensemble[members=0]", "members=0"),
        ("swag[scale=-1]", "scale"),
    ],
)
def test_wrong_options_are_found_before_anything_is_trained(
    data_dir: Path, base: str, tmp_path: Path, written: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run_study(make_study(data_dir, base), parse_methods(f"map,{written}"), tmp_path / "study", console=QUIET)
    assert not (tmp_path / "study" / "trained").exists()


def test_workers_share_the_jobs(
    done: Results, data_dir: Path, base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study, methods, folder = make_study(data_dir, base, seeds=(0, 1)), parse_methods(METHODS), tmp_path / "study"
    results = run_study(study, methods, folder, console=QUIET, workers=2)
    assert not results.missing
    for method in methods:
        for seed in (0, 1):
            # One core adds up in another order than two.
            theirs, ours = done.read(method, seed).prediction, results.read(method, seed).prediction
            torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-3, atol=1e-3)
    (session,) = json.loads((folder / "sessions.json").read_text(encoding="utf-8"))
    assert len(session["jobs"]) == 2 * 4
    assert "Warning" not in capfd.readouterr().err
    with pytest.raises(ConfigurationError, match="workers=0"):
        run_study(study, methods, folder, console=QUIET, workers=0)


def test_ensembles_do_not_share_members(data_dir: Path, base: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--seeds 0,1000 would share members"):
        run_study(
            make_study(data_dir, base, seeds=(0, 1000)), parse_methods("deep_ensemble"), tmp_path / "s", console=QUIET
        )


def test_a_method_that_predicts_no_numbers_does_not_stop_the_others(data_dir: Path, base: str, tmp_path: Path) -> None:
    methods = parse_methods("map,monteclora_calibrated,swag[scale=1e+30],swag[scale=1e+30]+temperature")
    results = run_study(make_study(data_dir, base), methods, tmp_path / "study", console=QUIET)
    assert [method.label for method, _ in results.failed] == ["swag[scale=1e+30]"]
    assert "logits that are NaN or infinite on rows of mrpc" in next(iter(results.failed.values()))
    assert write_report(results, methods[:1]).keys() == set(methods[:2])


def test_no_time_starts_nothing(data_dir: Path, base: str, tmp_path: Path) -> None:
    study = make_study(data_dir, base)
    results = run_study(study, parse_methods("map,temperature"), tmp_path / "study", console=QUIET, max_hours=0)
    assert len(results.missing) == 2
    assert write_report(results, [Method("map")]) == {}


@pytest.mark.parametrize("changes", [{"num_samples": 4}, {"held_out": 0.3}, {"train_rows": 30}])
def test_another_study_is_not_gone_on_with(done: Results, data_dir: Path, base: str, changes: dict[str, Any]) -> None:
    study = make_study(data_dir, base, seeds=(0, 1), **changes)
    with pytest.raises(RunExistsError, match=next(iter(changes))):
        run_study(study, parse_methods("map"), done.folder, console=QUIET)


def test_a_folder_of_something_else_is_left_alone(data_dir: Path, base: str, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunExistsError, match=r"study\.json is missing or damaged"):
        run_study(make_study(data_dir, base), parse_methods("map"), tmp_path, console=QUIET)


def test_rows_to_choose_settings_by(data_dir: Path, base: str) -> None:
    rows = make_study(data_dir, base, eval_split="held_out").load()
    own = [{row["sentence1"] + row["sentence2"] for row in part} for part in (rows.fit, rows.held_out, rows.evaluated)]
    assert not own[0] & own[1]
    assert not own[0] & own[2]
    assert not own[1] & own[2]  # what is chosen on some rows is not judged by them
    assert rows.evaluated
    rows = make_study(data_dir, base, train_rows=20, eval_rows=5).load()
    assert (len(rows.fit) + len(rows.held_out), len(rows.evaluated)) == (20, 5)
    assert rows.outside is not None
    assert len(rows.outside.validation) == 5
    texts = [{row["sentence1"] + row["sentence2"] for row in part} for part in (rows.fit, rows.held_out)]
    assert not texts[0] & texts[1]


def test_the_command(data_dir: Path, base: str, tmp_path: Path) -> None:
    arguments = ["compare", "--task", "mrpc", "--data-dir", data_dir, "--base-model", base, "--out", tmp_path / "study"]
    arguments += ["--methods", "map,temperature", "--quick", "--outside", "rte", "--held-out", "0.2"]
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["methods"].keys() == {"map", "temperature"}
    assert found["missing"] == []
    shown = run(*arguments)  # all of it is there
    assert "temperature" in shown.stdout
    assert "results.csv" in shown.stdout
    assert (tmp_path / "study" / "reliability.png").stat().st_size > 10_000
    assert "table.tex" in shown.stdout
    with pytest.raises(ConfigurationError, match="--reference 'laplace' must be some of the --methods"):
        run(*arguments, "--reference", "laplace")
    with pytest.raises(RunExistsError, match="num_samples"):
        run(*arguments, "--num-samples", "5")


def test_the_help_shows_how_options_are_written() -> None:
    shown = " ".join(run("compare", "--help").stdout.replace("│", " ").split())
    assert "laplace[link=probit]" in shown
