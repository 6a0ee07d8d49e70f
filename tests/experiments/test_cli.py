"""The command line, on the real MiniLM and small files."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bayes_lora.errors import (
    BaseModelError,
    BayesLoRAError,
    ConfigurationError,
    DataError,
    PosteriorFileError,
    RunExistsError,
    TaskError,
)
from bayes_lora.experiments.cli import app
from bayes_lora.experiments.embedded_task import make_embedded_task
from bayes_lora.experiments.rows import read_rows, write_jsonl

QUICK = ["--epochs", "1", "--batch-size", "8", "--num-samples", "3", "--max-length", "16"]


def run(*arguments: object) -> Any:
    """The command's result; an error of the library is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, BayesLoRAError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = make_embedded_task(num_train=24, num_validation=4, num_out_of_distribution=4)
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    write_jsonl(path, [{"a": row["sentence1"], "b": row["sentence2"], "same": row["label"]} for row in task.rows.train])
    return path


@pytest.fixture(scope="module")
def fitted(rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = run(*fit_arguments(rows_file), "--out", out, "--json", *QUICK)
    return out, json.loads(result.stdout)


def fit_arguments(rows_file: Path) -> list[object]:
    return ["fit", "--train-file", rows_file, "--text-columns", "a,b", "--label-column", "same"]


def test_fit_prints_one_json_object_and_leaves_a_whole_run(fitted: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = fitted
    assert set(metrics["point"]) == set(metrics["posterior_predictive"]) == {"accuracy", "nll", "ece", "brier"}
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "environment.json",
        "history.jsonl",
        "metrics.json",
        "posterior",
        "predictions.jsonl",
    }
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["posterior"]["num_components"] == 4
    assert config["training"]["seed"] == 0
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["point"] == metrics["point"]


def test_predict_gives_the_runs_own_probabilities_again(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, metrics = fitted
    run("predict", out, "--output", tmp_path / "again.jsonl")
    before, after = read_rows(out / "predictions.jsonl"), read_rows(tmp_path / "again.jsonl")
    assert len(before) == metrics["num_validation"]
    assert [row["probs"] for row in after] == [row["probs"] for row in before]
    run("predict", out, "--mean", "--output", tmp_path / "mean.jsonl")
    assert [row["probs"] for row in read_rows(tmp_path / "mean.jsonl")] == [row["point_probs"] for row in before]


def test_the_same_seed_repeats_a_fit(fitted: tuple[Path, dict[str, Any]], rows_file: Path, tmp_path: Path) -> None:
    out, _ = fitted
    run(*fit_arguments(rows_file), "--out", tmp_path / "again", *QUICK)
    names = ("history.jsonl", "predictions.jsonl", "posterior/posterior.safetensors")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    run(*fit_arguments(rows_file), "--out", tmp_path / "other", "--seed", "1", *QUICK)
    assert (tmp_path / "other" / names[1]).read_bytes() != (out / names[1]).read_bytes()


def test_predict_takes_unlabelled_rows(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "new.jsonl", [{"a": "The chef baked a pie.", "b": "A pie was baked.", "note": "kept"}])
    result = run("predict", fitted[0], "--input", tmp_path / "new.jsonl", "--json")
    (row,) = json.loads(result.stdout)["predictions"]
    assert row["note"] == "kept"
    assert sum(row["probs"].values()) == pytest.approx(1, abs=1e-6)
    assert row["total_entropy"] >= row["aleatoric_entropy"] - 1e-6


def test_people_get_tables(fitted: tuple[Path, dict[str, Any]], rows_file: Path, tmp_path: Path) -> None:
    shown = run(*fit_arguments(rows_file), "--out", tmp_path / "run", *QUICK).stdout
    assert "posterior predictive" in shown
    assert "ECE % (15 bins)" in shown
    shown = run("predict", fitted[0]).stdout
    assert "entropy" in shown
    assert "predictions" in shown


@pytest.mark.parametrize(
    "objective", [["--objective", "elbo", "--temperature", "0.01"], ["--method", "monteclora_sparse"]]
)
def test_other_objectives_and_methods(rows_file: Path, tmp_path: Path, objective: list[str]) -> None:
    run(*fit_arguments(rows_file), "--out", tmp_path / "run", *objective, *QUICK, "--limit", "8")
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["posterior"]
    assert config["num_train_examples"] == (8 if "elbo" in objective else None)
    assert config["mixture"] == ("dense" if "elbo" in objective else "sparse")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--task", "mrcp"], TaskError, "There is no task 'mrcp'. Did you mean mrpc"),
        ([], TaskError, "Give either --task .* or --train-file"),
        (["--task", "mrpc", "--data-dir", "nowhere"], DataError, "There is no folder .*nowhere/mrpc"),
        (["--train-file", "ROWS"], TaskError, "--train-file needs --text-columns"),
        (["--train-file", "ROWS", "--text-columns", "a,c", "--label-column", "same"], DataError, "no column 'c'; it"),
        (["--train-file", "ROWS", "--text-columns", "a,b", "--label-column", "y"], DataError, "no column 'y'"),
        (["--train-file", "ROWS", "--text-columns", "a,b", "--label-column", "same", "--base-model", "./no"],
         BaseModelError, "looks like a path, but there is no such folder"),
        (["--train-file", "ROWS", "--text-columns", "a,b", "--label-column", "same", "--temperature", "0.1"],
         ConfigurationError, "temperature=0.1 belongs to objective='elbo'"),
        (["--train-file", "ROWS", "--text-columns", "a,b", "--label-column", "same", "--method", "map2"],
         ConfigurationError, "--method 'map2' is unknown"),
        (["--train-file", "ROWS", "--text-columns", "a,b", "--label-column", "same", "--limit", "0"],
         ConfigurationError, "--limit=0 must be an integer >= 1"),
        (["--train-file", "ROWS", "--text-columns", "a,b", "--label-column", "same", "--degrees-of-freedom", "many"],
         ConfigurationError, "'many' is not a number"),
        (["--train-file", "ROWS", "--text-columns", "a,b", "--label-column", "same", "--degrees-of-freedom", "3"],
         ConfigurationError, "below the LoRA rank 8"),
    ],
)  # fmt: skip
def test_bad_arguments(
    rows_file: Path, tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    filled = [str(rows_file) if argument == "ROWS" else argument for argument in arguments]
    with pytest.raises(error, match=message):
        run("fit", *filled, "--out", tmp_path / "run", *QUICK)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"a": "x", "y": 0}\n{"a": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl.*2"):
        run("fit", "--train-file", bad, "--text-columns", "a", "--label-column", "y", "--out", tmp_path / "run")
    bad.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl has no rows"):
        run("fit", "--train-file", bad, "--text-columns", "a", "--label-column", "y", "--out", tmp_path / "run")


def test_folders_and_files_are_not_overwritten(
    fitted: tuple[Path, dict[str, Any]], rows_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunExistsError, match=r"exists already\. Choose another --out, or say --overwrite"):
        run(*fit_arguments(rows_file), "--out", fitted[0], *QUICK)
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunExistsError, match="is no run folder, so --overwrite will not delete it"):
        run(*fit_arguments(rows_file), "--out", tmp_path, "--overwrite", *QUICK)
    with pytest.raises(DataError, match=r"exists already\. Choose another --output"):
        run("predict", fitted[0], "--output", tmp_path / "precious.txt")
    assert (tmp_path / "precious.txt").read_text(encoding="utf-8") == "mine"


def test_what_is_no_run_is_refused(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run: config\.json is missing"):
        run("predict", tmp_path)
    (tmp_path / "config.json").write_bytes((fitted[0] / "config.json").read_bytes())
    with pytest.raises(PosteriorFileError, match=r"bayes_lora\.json is missing"):
        run("predict", tmp_path)


def test_an_error_is_one_message_and_a_status(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from bayes_lora.experiments.cli import main; main()", "predict", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: DataError:" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_interrupted_fit_is_resumed_to_the_same_end(rows_file: Path, tmp_path: Path) -> None:
    options = [*QUICK, "--epochs", "4", "--save-every", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(*fit_arguments(rows_file), "--out", whole, *options)
    command = [sys.executable, "-c", "from bayes_lora.experiments.cli import main; main()"]
    arguments = [str(argument) for argument in (*fit_arguments(rows_file), "--out", cut, *options)]
    process = subprocess.Popen(command + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not list(cut.glob("checkpoints/checkpoint-*/complete.json")):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (cut / "metrics.json").exists()
    run("fit", "--resume", cut)
    for name in ("predictions.jsonl", "posterior/posterior.safetensors", "posterior/adapter_model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert not (cut / "checkpoints").exists()
    with pytest.raises(RunExistsError, match="is finished: there is nothing to resume"):
        run("fit", "--resume", cut)


def test_what_cannot_be_resumed(rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Give --out, .* or --resume"):
        run(*fit_arguments(rows_file))
    with pytest.raises(DataError, match="is not a run"):
        run("fit", "--resume", tmp_path)
    copied = tmp_path / "rows.jsonl"
    copied.write_bytes(rows_file.read_bytes())
    run(*fit_arguments(copied), "--out", tmp_path / "run", *QUICK)
    (tmp_path / "run" / "metrics.json").unlink()
    write_jsonl(copied, read_rows(copied)[1:])
    with pytest.raises(DataError, match="have changed since it was started"):
        run("fit", "--resume", tmp_path / "run")
