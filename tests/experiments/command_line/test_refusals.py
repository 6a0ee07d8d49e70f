"""What the command line refuses: each error says what is wrong, where, and what to type; nothing else happens."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bayes_lora.errors import (
    BaseModelError,
    ConfigurationError,
    DataError,
    PosteriorFileError,
    RunExistsError,
    TaskError,
)
from bayes_lora.experiments.rows.rows import read_rows, write_jsonl
from tests.experiments.commands import PAIRS, QUICK, fit_arguments, run

OWN = ["--train-file", "ROWS", *PAIRS]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--task", "mrcp"], TaskError, "There is no task 'mrcp'. Did you mean mrpc"),
        ([], TaskError, "Give either --task .* or --train-file"),
        (["--task", "mrpc", "--data-dir", "nowhere"], DataError, "There is no folder .*nowhere/mrpc"),
        (["--task", "mrpc", "--eval-file", "ROWS"], TaskError, "--eval-file belongs to --train-file; --task mrpc says"),
        (["--task", "mrpc", "--text-columns", "a"], TaskError, "--text-columns belongs to --train-file"),
        (["--task", "mrpc", "--label-column", "same"], TaskError, "--label-column belongs to --train-file"),
        ([*OWN, "--data-dir", "nowhere"], TaskError, "--data-dir belongs to --task; rows of your own are in"),
        (["--train-file", "ROWS"], TaskError, "--train-file needs --text-columns"),
        ([*OWN, "--text-columns", "a,a"], TaskError, "names a text column twice"),
        ([*OWN, "--text-columns", "a,c"], DataError, "no column 'c'; it"),
        ([*OWN, "--label-column", "y"], DataError, "no column 'y'"),
        ([*OWN, "--label-column", "prediction"], TaskError, "'prediction' cannot be a text or label column"),
        ([*OWN, "--base-model", "./no"], BaseModelError, "looks like a path, but there is no such folder"),
        ([*OWN, "--temperature", "0.1"], ConfigurationError, "kl_temperature=0.1 belongs to objective='elbo'"),
        ([*OWN, "--method", "map2"], ConfigurationError, "--method 'map2' is unknown"),
        ([*OWN, "--limit", "0"], ConfigurationError, "--limit=0 must be an integer >= 1"),
        ([*OWN, "--train-rows", "0"], ConfigurationError, "--train-rows=0 must be an integer >= 1"),
        ([*OWN, "--num-samples", "many"], ConfigurationError, "--num-samples 'many' must be a whole number"),
        ([*OWN, "--num-samples", "0"], ConfigurationError, "num_samples=0 must be an integer >= 1"),
        ([*OWN, "--seed", "-1"], ConfigurationError, "--seed=-1 must be an integer from 0"),
        ([*OWN, "--seed", "4294967296"], ConfigurationError, "--seed=4294967296 must be an integer from 0"),
        ([*OWN, "--degrees-of-freedom", "many"], ConfigurationError,
         "--degrees-of-freedom 'many' must be a number, or rank or in_features"),
        ([*OWN, "--init-concentration", "abc"], ConfigurationError,
         "--init-concentration 'abc' must be a number, or random"),
        ([*OWN, "--degrees-of-freedom", "3"], ConfigurationError, "below the LoRA rank 8"),
        ([*OWN, "--targets", "classifier"], ConfigurationError,
         "PEFT cannot put LoRA adapters on the modules 'classifier' of BertFor.* Name other modules with --targets"),
        ([*OWN, "--targets", "querry"], ConfigurationError, "no linear layer called 'querry'"),
        ([*OWN, "--max-length", "513"], ConfigurationError, "max_length=513 must be from 1 to 512"),
    ],
)  # fmt: skip
def test_bad_arguments_leave_nothing_behind(
    rows_file: Path, tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    filled = [str(rows_file) if argument == "ROWS" else argument for argument in arguments]
    with pytest.raises(error, match=message):
        run("fit", "--out", tmp_path / "runs" / "new", *QUICK, *filled)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--base-model", "./absent"],
        ["--targets", "classifier"],
        ["--degrees-of-freedom", "3"],
        ["--max-length", "513"],
        ["--num-samples", "0"],
    ],
)
def test_an_old_run_stays_until_the_new_one_can_start(
    fitted: tuple[Path, dict[str, Any]], rows_file: Path, options: list[str]
) -> None:
    before = {path: path.read_bytes() for path in fitted[0].rglob("*") if path.is_file()}
    with pytest.raises((BaseModelError, ConfigurationError)):
        run(*fit_arguments(rows_file), "--out", fitted[0], "--overwrite", *QUICK, *options)
    assert {path: path.read_bytes() for path in fitted[0].rglob("*") if path.is_file()} == before


def test_overwrite_replaces_a_run(rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for seed in (0, 1):
        run(*fit_arguments(rows_file), "--out", out, "--overwrite", *QUICK, "--limit", "4", "--seed", seed)
        assert not (out / "left_over").exists()
        (out / "left_over").touch()
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["training"]["seed"] == 1


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


def test_a_base_model_is_not_a_run_to_be_overwritten(rows_file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(RunExistsError, match="is no run folder, so --overwrite will not delete it"):
        run(*fit_arguments(rows_file), "--out", tmp_path, "--overwrite", *QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_places_that_cannot_be_written(fitted: tuple[Path, dict[str, Any]], rows_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataError, match=r"file is a file, so .*file/x cannot be made inside it\. Choose another --out"):
        run(*fit_arguments(rows_file), "--out", file / "x", *QUICK)
    with pytest.raises(RunExistsError, match="is no run folder"):
        run(*fit_arguments(rows_file), "--out", file, "--overwrite", *QUICK)
    with pytest.raises(DataError, match=r"file/deep/y\.jsonl cannot be made inside it\. Choose another --output"):
        run("predict", fitted[0], "--output", file / "deep" / "y.jsonl")
    with pytest.raises(DataError, match=r"is a folder\. Name a file, such as .*predictions\.jsonl"):
        run("predict", fitted[0], "--output", tmp_path, "--overwrite")
    with pytest.raises(DataError, match=r"out\.csv must end in \.jsonl or \.jsonl\.gz"):
        run("predict", fitted[0], "--output", tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_no_run_is_refused(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run: config\.json is missing"):
        run("predict", tmp_path)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"is not a run: config\.json is missing or damaged"):
        run("predict", tmp_path)
    for name in ("config.json", "metrics.json"):
        shutil.copy(fitted[0] / name, tmp_path)
    with pytest.raises(PosteriorFileError, match=r"bayes_lora\.json is missing"):
        run("predict", tmp_path)


@pytest.mark.parametrize("version", [None, 2])
def test_a_run_of_another_version_is_refused(
    fitted: tuple[Path, dict[str, Any]], tmp_path: Path, version: int | None
) -> None:
    config = json.loads((fitted[0] / "config.json").read_text(encoding="utf-8"))
    assert config["schema_version"] == 1
    (tmp_path / "config.json").write_text(json.dumps(config | {"schema_version": version}), encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"has schema version {version}, this library reads 1\. Install the bayes-lora"
    ):
        run("predict", tmp_path)


def test_a_prediction_asks_for_draws_it_can_have(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="num_samples=0 must be an integer >= 1"):
        run("predict", fitted[0], "--num-samples", "0")
    with pytest.raises(ConfigurationError, match="--mean draws nothing, so --num-samples would do nothing"):
        run("predict", fitted[0], "--mean", "--num-samples", "4")
    run("predict", fitted[0], "--num-samples", "1", "--output", tmp_path / "one.jsonl")
    assert {row["mutual_information"] for row in read_rows(tmp_path / "one.jsonl")} == {0.0}


def test_an_interrupted_run_says_how_to_go_on(
    fitted: tuple[Path, dict[str, Any]], rows_file: Path, tmp_path: Path
) -> None:
    shutil.copy(fitted[0] / "config.json", tmp_path)
    for arguments in (["predict", tmp_path], [*fit_arguments(rows_file), "--out", tmp_path]):
        with pytest.raises((DataError, RunExistsError), match=rf"'bayes-lora fit --resume {tmp_path}' goes on with it"):
            run(*arguments)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"source": None}), encoding="utf-8")
    with pytest.raises(DataError, match=r"is unfinished: its fit was interrupted\. Start it anew with --overwrite"):
        run("predict", tmp_path)


def test_what_cannot_be_resumed(rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Give --out, .* or --resume"):
        run(*fit_arguments(rows_file))
    with pytest.raises(DataError, match="is not a run"):
        run("fit", "--resume", tmp_path, "--json")
    with pytest.raises(ConfigurationError, match=r"so --epochs, --overwrite would do nothing\. Drop them, or start"):
        run("fit", "--resume", tmp_path, "--epochs", "3", "--overwrite")
    copied = tmp_path / "rows.jsonl"
    copied.write_bytes(rows_file.read_bytes())
    run(*fit_arguments(copied), "--out", tmp_path / "run", *QUICK)
    (tmp_path / "run" / "metrics.json").unlink()
    write_jsonl(copied, read_rows(copied)[1:])
    with pytest.raises(DataError, match="have changed since it was started"):
        run("fit", "--resume", tmp_path / "run")
