"""The study as a whole: done once, gone on with, not mixed with another; its files and its pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from bayes_lora.errors import BayesLoRAError, ConfigurationError, DataError, RunExistsError
from bayes_lora.experiments.command_line.ground_truth import ground_truth_command
from bayes_lora.experiments.ground_truth import report
from bayes_lora.experiments.ground_truth.methods import Effort
from bayes_lora.experiments.ground_truth.report import markdown, read_findings, write_report
from bayes_lora.experiments.ground_truth.study import Study, jobs, run_study

TINY = Study(
    seeds=(2,),
    effort=Effort(num_steps=5, num_draws=50, num_mcmc=300),
    problems=("regression",),
    methods=("map", "laplace", "laplace_kfac", "elbo_dense_N4"),
    replications=2,
    lemma_draws=20,
)
QUIET = Console(quiet=True)


def command(*arguments: object) -> Any:
    """The command's result; an error of the library is raised as it is."""
    app = typer.Typer()
    app.command()(ground_truth_command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, BayesLoRAError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study, run; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    assert run_study(TINY, folder, console=QUIET) == {}
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in sorted((folder / "jobs").rglob("*.json")))
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_every_job_is_done_once(done: Path) -> None:
    before = snapshot(done)
    assert len(before) == len(jobs(TINY, done))
    assert run_study(TINY, done, console=QUIET) == {}
    assert snapshot(done) == before


def test_it_is_said_where_jobs_were_done(done: Path) -> None:
    (session,) = json.loads((done / "sessions.json").read_text(encoding="utf-8"))
    assert {job["name"] for job in session["jobs"]} == {job.name for job in jobs(TINY, done)}
    assert session["seconds"] > 0
    assert {"commit", "processor", "packages", "command"} <= session.keys()


def test_an_interrupted_study_goes_on_to_the_same_result(done: Path) -> None:
    before = snapshot(done)
    lost = ["jobs/methods/regression-elbo_dense_N4-2.json", "jobs/calibration/regression-exact-00000.json"]
    for name in lost:
        (done / name).unlink()
    run_study(TINY, done, console=QUIET)
    assert {name: data for name, (_, data) in snapshot(done).items()} == {n: data for n, (_, data) in before.items()}


def test_two_processes_compute_what_one_does(done: Path, tmp_path: Path) -> None:
    assert run_study(TINY, tmp_path / "shared", workers=2, console=QUIET) == {}
    ours, theirs = ({n: data for n, (_, data) in snapshot(folder).items()} for folder in (tmp_path / "shared", done))
    assert ours == theirs


def test_findings_hold_everything_that_was_asked_for(done: Path) -> None:
    found = read_findings(TINY, done)
    # K-FAC is of the softmax likelihood: it is left out of regressions.
    assert list(found.methods["regression"]) == ["map", "laplace", "elbo_dense_N4"]
    assert {name: len(ranks.values) for (_, name), ranks in found.ranks.items()} == {
        "exact": 20,
        "variance_quartered": 20,
        "nuts": 2,
        "elbo_dense_N4": 2,
    }
    truth = found.truth["regression"][2]
    assert truth["largest_rhat"] < 1.01
    assert truth["mean_off_by_standard_errors"] < 4.5
    laplace = found.methods["regression"]["laplace"][2]  # of a regression, the posterior itself
    assert laplace["coverage_90"] == pytest.approx(0.9, abs=0.1)
    assert laplace["predictive_kl"] < found.methods["regression"]["map"][2]["predictive_kl"]  # type: ignore[operator]
    assert found.methods["regression"]["map"][2]["log_variance_ratio"] is None


def test_report_writes_numbers_a_page_and_pictures(done: Path) -> None:
    found = write_report(TINY, done)
    assert json.loads((done / report.RESULTS_FILE).read_text())["calibration"].keys() == {
        f"regression-{name}" for name in ("exact", "variance_quartered", "nuts", "elbo_dense_N4")
    }
    page = (done / report.TABLE_FILE).read_text()
    assert page == markdown(found)
    for heading in ("## Regression: methods against NUTS", "## Simulation-based calibration", "## Lemmas"):
        assert heading in page
    assert "| map |" in page
    for name in (report.MEASURES_FILE, report.RANKS_FILE, report.LEMMAS_FILE):
        assert (done / name).read_bytes().startswith(b"\x89PNG")


def test_seeds_and_methods_may_be_added_but_not_other_settings(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / "jobs").mkdir(parents=True)
    (folder / "study.json").write_bytes((done / "study.json").read_bytes())
    with pytest.raises(RunExistsError, match="holds a study with other settings"):
        run_study(Study(seeds=(2,)), folder, console=QUIET)
    (folder / "study.json").write_text("{")
    with pytest.raises(RunExistsError, match="missing or damaged"):
        run_study(TINY, folder, console=QUIET)


def test_a_method_without_its_truth_fails_alone(tmp_path: Path) -> None:
    """Chains too short to converge: the jobs that need them say so, the others are done."""
    short = Study((0,), Effort(5, 20, 4), ("regression",), ("map",), replications=1, lemma_draws=5)
    failed = run_study(short, tmp_path / "study", console=QUIET)
    assert "NotConvergedError" in failed["truth/regression-0"]
    assert "the posterior was not sampled" in failed["methods/regression-map-0"]
    assert set(failed) == {"truth/regression-0", "methods/regression-map-0"}


def test_a_damaged_result_is_named(done: Path) -> None:
    path = done / "jobs" / "lemmas" / "regression-2.json"
    data = path.read_bytes()
    path.write_bytes(data[:20])
    try:
        with pytest.raises(DataError, match=r"regression-2\.json cannot be read .* Delete it"):
            read_findings(TINY, done)
    finally:
        path.write_bytes(data)


def test_results_do_not_move_global_generators(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    job = next(job for job in jobs(TINY, tmp_path) if job.name.startswith("calibration/regression-elbo"))
    job.run()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0,one"), "--seeds '0,one' must be whole numbers"),
        (("--seeds", "1,1"), "must be one or more different whole numbers"),
        (("--methods", "magic"), "methods='magic' is none of 'nuts_again'"),
        (("--problems", "ranking"), "problems='ranking' is none of 'regression'"),
        (("--replications", "0"), "replications=0 must be an integer >= 1"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        command("--out", tmp_path / "study", *arguments)
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_command_prints_one_json_object(tmp_path: Path) -> None:
    options = ("--quick", "--problems", "regression", "--methods", "map", "--replications", "1", "--seeds", "2")
    result = command("--out", tmp_path / "study", "--json", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["failed"] == {}
    assert found["methods"]["regression"]["map"]["2"]["coverage_50"] == 0
