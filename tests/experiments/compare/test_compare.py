"""Running a comparison: its files, sharing, going on with it, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_lora.errors import ConfigurationError, RunExistsError, TaskError
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.report import write_report
from bayes_lora.experiments.compare.running import EVALUATED, HELD_OUT, Results, _Bench, run_study
from bayes_lora.experiments.runs.study_folder import only_one
from bayes_lora.inference import Ensemble, fit_temperature
from bayes_lora.inference.storage.predictions import row_id
from bayes_lora.metrics.classification import example_losses, negative_log_likelihood
from tests.experiments.commands import run
from tests.experiments.compare.studies import COMPARED, QUIET, make_study, named


def copy_of(results: Results, folder: Path) -> Results:
    shutil.copytree(results.folder, folder)
    return replace(results, folder=folder)


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
    run_study(make_study(data_dir, base, seeds=(0, 1)), parse_methods(COMPARED), again.folder, console=QUIET)
    first, second = json.loads((again.folder / "sessions.json").read_text(encoding="utf-8"))
    assert first == session
    assert [(job["method"], job["seed"]) for job in second["jobs"]] == [("mc_dropout", 1)]


def test_a_temperature_is_not_chosen_by_rows_that_were_chosen_by(tmp_path: Path, data_dir: Path, base: str) -> None:
    study = make_study(data_dir, base)
    rows = study.load()
    both = run_study(study, parse_methods("early_stopping,early_stopping+temperature"), tmp_path / "s", console=QUIET)
    assert not both.missing
    assert not both.failed
    whole, halved = (both.read(found, 0, HELD_OUT) for found in (both.methods[0], both.methods[1].untempered))
    held_out = [row_id(row, rows.task.columns) for row in study.split(rows, 0)[1]]
    assert list(whole.row_ids) == held_out
    assert list(halved.row_ids) == held_out[1::2]
    # The checkpoint is that of the least NLL on the other half.
    bench = _Bench.of(study, rows, both.folder, None, torch.device("cpu"))
    fitting = bench.fitting(0)
    point, _ = fitting.point(0)
    other = fitting.held_out.halves()[0]
    nlls = []
    for state in fitting.point_checkpoints(point, 0):
        found = Ensemble(point.network, [state])(other.loader())
        assert found.labels is not None
        nlls.append(negative_log_likelihood(found.mean_probs, found.labels))
    assert both.chosen(both.methods[1], 0)["checkpoint"] == nlls.index(min(nlls)) + 1
    temperature = both.chosen(both.methods[1], 0)["temperature"]
    assert temperature == fit_temperature(halved.prediction)


def test_temperature_keeps_the_class_and_is_chosen_on_held_out_rows(done: Results) -> None:
    plain, tempered = (done.read(named(name), 0).prediction for name in ("map", "temperature"))
    temperature = done.chosen(named("temperature"), 0)["temperature"]
    assert torch.equal(plain.mean_probs.argmax(-1), tempered.mean_probs.argmax(-1))
    expected = (plain.logits[0].double() / temperature).softmax(-1)
    torch.testing.assert_close(tempered.mean_probs, expected, rtol=1e-6, atol=1e-9)
    held_out = done.read(named("map"), 0, "held-out").prediction
    assert held_out.labels is not None

    def nll(at: float) -> float:
        probs = (held_out.logits[0].double() / at).softmax(-1)
        return float(example_losses(probs, held_out.labels)["nll"].mean())

    assert nll(temperature) <= min(nll(0.9 * temperature), nll(min(1e3, 1.1 * temperature)), nll(1.0)) + 1e-9


def test_it_goes_on_and_makes_only_what_is_missing(done: Results, data_dir: Path, base: str, tmp_path: Path) -> None:
    results = copy_of(done, tmp_path / "study")
    tempered, calibrated = done.methods[3], done.methods[4]
    before = results.read(tempered, 1).prediction.logits, results.read(calibrated, 0).prediction.logits
    kept = results.path(named("map"), 0, EVALUATED).stat().st_mtime_ns
    results.path(tempered, 1, EVALUATED).unlink()
    results.path(calibrated, 0, EVALUATED).unlink()
    assert results.missing == [(calibrated, 0), (tempered, 1)]
    study = make_study(data_dir, base, seeds=(0, 1))
    again = run_study(study, parse_methods(COMPARED), results.folder, console=QUIET)
    assert not again.missing
    assert torch.equal(again.read(tempered, 1).prediction.logits, before[0])
    assert torch.equal(again.read(calibrated, 0).prediction.logits, before[1])
    assert again.path(named("map"), 0, EVALUATED).stat().st_mtime_ns == kept


@pytest.mark.parametrize("part", ["outside.parquet", "held-out.parquet", "chosen.json"])
def test_any_part_that_is_missing_is_made_again(
    done: Results, data_dir: Path, base: str, tmp_path: Path, part: str
) -> None:
    results = copy_of(done, tmp_path / "study")
    path = results.folder / "predictions" / "temperature" / f"seed-1-{part}"
    before = path.read_bytes()
    path.unlink()
    assert results.missing == [(named("temperature"), 1)]
    again = run_study(make_study(data_dir, base, seeds=(0, 1)), parse_methods(COMPARED), results.folder, console=QUIET)
    assert not again.missing
    assert path.read_bytes() == before


def test_a_method_that_fails_does_not_stop_the_others(data_dir: Path, base: str, tmp_path: Path) -> None:
    study, folder = make_study(data_dir, base), tmp_path / "study"
    run_study(study, parse_methods("map"), folder, console=QUIET)
    trained = folder / "trained" / "map" / "seed-0" / "trained" / "trained.safetensors"
    trained.write_bytes(trained.read_bytes()[:-8])
    too_large = "monteclora[num_components=100000000000000]"
    results = run_study(study, parse_methods(f"mc_dropout,{too_large},monteclora"), folder, console=QUIET)
    assert [method.label for method, _ in results.failed] == ["mc_dropout", too_large]
    first, second = results.failed.values()
    assert first.startswith("CheckpointFileError: ")
    assert second.startswith("RuntimeError: ")  # nothing of ours: there is not so much memory
    assert [method.label for method, _ in results.missing] == ["mc_dropout", too_large]


def test_a_point_estimate_that_was_deleted_is_trained_once(data_dir: Path, base: str, tmp_path: Path) -> None:
    study, folder = make_study(data_dir, base), tmp_path / "study"
    run_study(study, parse_methods("map"), folder, console=QUIET)
    shutil.rmtree(folder / "trained")
    results = run_study(study, parse_methods("map,mc_dropout,early_stopping"), folder, console=QUIET, workers=2)
    assert not results.failed
    assert not results.missing
    last = json.loads((folder / "sessions.json").read_text(encoding="utf-8"))[-1]
    assert last["jobs"][0]["method"] == "map"  # before the others, which then find it


def test_two_do_not_work_on_one_study(data_dir: Path, base: str, tmp_path: Path) -> None:
    study, folder = make_study(data_dir, base), tmp_path / "study"
    run_study(study, parse_methods("map"), folder, console=QUIET, max_hours=0)
    with only_one(folder), pytest.raises(RunExistsError, match=r"another process works on .*study\. Wait for it"):
        run_study(study, parse_methods("map"), folder, console=QUIET)
    assert not run_study(study, parse_methods("map"), folder, console=QUIET).missing


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
    study, methods, folder = make_study(data_dir, base, seeds=(0, 1)), parse_methods(COMPARED), tmp_path / "study"
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
    assert write_report(results, [named("map")]) == {}


@pytest.mark.parametrize("changes", [{"num_samples": 4}, {"held_out": 0.3}, {"train_rows": 30}])
def test_another_study_is_not_gone_on_with(done: Results, data_dir: Path, base: str, changes: dict[str, Any]) -> None:
    study = make_study(data_dir, base, seeds=(0, 1), **changes)
    with pytest.raises(RunExistsError, match=next(iter(changes))):
        run_study(study, parse_methods("map"), done.folder, console=QUIET)


def test_a_folder_of_something_else_is_left_alone(data_dir: Path, base: str, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunExistsError, match=r"study\.json is missing or damaged"):
        run_study(make_study(data_dir, base), parse_methods("map"), tmp_path, console=QUIET)


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


def test_the_command_with_rows_of_ones_own(data_dir: Path, base: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"a text that is number {number}", "label": number % 2}) for number in range(40)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    (tmp_path / "one.jsonl").write_text(lines[0])  # of one class: some metrics have no value
    arguments = ["compare", "--train-file", tmp_path / "own.jsonl", "--eval-file", tmp_path / "one.jsonl"]
    arguments += ["--text-columns", "text", "--base-model", base, "--methods", "base_rate", "--held-out", "0.2"]
    arguments += ["--out", tmp_path / "study", "--quick", "--json"]
    shown = run(*arguments, "--outside", "rte", "--data-dir", data_dir).stdout
    numbers = json.loads(shown, parse_constant=pytest.fail)["methods"]["base_rate"]["0"]
    assert numbers["ood_auroc_entropy"] == 0.5
    assert None in numbers.values()
    with pytest.raises(TaskError, match="--data-dir belongs to --task"):
        run(*arguments, "--data-dir", data_dir)


def test_the_help_shows_how_options_are_written() -> None:
    shown = " ".join(run("compare", "--help").stdout.replace("│", " ").split())
    assert "laplace[link=probit]" in shown
