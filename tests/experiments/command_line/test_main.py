"""The command line, on the real MiniLM and small files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_lora.errors import RunExistsError
from bayes_lora.experiments.rows.rows import read_rows, write_jsonl
from bayes_lora.experiments.runs.run_config import read_config
from bayes_lora.inference.finetuning.lora import LoRAOptions
from tests.experiments.commands import QUICK, fit_arguments, run


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
    assert "NLL (nats)" in shown
    shown = run("predict", fitted[0]).stdout
    assert "entropy" in shown
    assert "predictions" in shown


@pytest.mark.parametrize(
    "objective",
    [
        ["--objective", "elbo", "--temperature", "0.01"],
        ["--method", "monteclora_sparse"],
        ["--objective", "elbo", "--normal-kl", "expected"],
    ],
)
def test_other_objectives_and_methods(rows_file: Path, tmp_path: Path, objective: list[str]) -> None:
    run(*fit_arguments(rows_file), "--out", tmp_path / "run", *objective, *QUICK, "--limit", "8")
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["posterior"]
    assert config["num_train_examples"] == (8 if "elbo" in objective else None)
    assert config["mixture"] == ("dense" if "elbo" in objective else "sparse")
    assert config["normal_kl"] == ("expected" if "--normal-kl" in objective else "sampled")
    assert read_config(tmp_path / "run").posterior.normal_kl == config["normal_kl"]


def test_rows_are_shown_as_they_are(rows_file: Path, tmp_path: Path) -> None:
    odd = [{**row, "a [bold]": f"odd [/b] :smile: {row['a']}", "same": f"[red]{row['same']}"}
           for row in read_rows(rows_file)]  # fmt: skip
    write_jsonl(tmp_path / "odd.jsonl", odd)
    out = tmp_path / "[i]run"
    columns = ["--text-columns", "a [bold]", "--label-column", "same"]
    shown = run("fit", "--train-file", tmp_path / "odd.jsonl", *columns, "--out", out, *QUICK).stdout
    assert f"Saved in {out}." in shown
    shown = run("predict", out, "--output", tmp_path / "[b]again.jsonl").stdout
    assert "odd [/b] :smile:" in shown
    assert "a [bold]" in shown
    assert "[red]" in shown
    assert f"written to {tmp_path / '[b]again.jsonl'}." in shown


def test_labelled_rows_are_evaluated(fitted: tuple[Path, dict[str, Any]], rows_file: Path, tmp_path: Path) -> None:
    out, metrics = fitted
    own = json.loads(run("predict", out, "--json").stdout)
    assert own["metrics"] == metrics["posterior_predictive"]
    at_mean = json.loads(run("predict", out, "--mean", "--json").stdout)
    assert at_mean["metrics"] == metrics["point"]
    assert "24 labelled rows" in run("predict", out, "--input", rows_file).stdout
    rows = read_rows(rows_file)
    for name, value in (("same", "none of the classes"), ("same", True), ("other", 0)):
        unlabelled = [{key: row[key] for key in ("a", "b")} | {name: value} for row in rows[:1]]
        write_jsonl(tmp_path / "some.jsonl", [*rows, *unlabelled])
        found = json.loads(run("predict", out, "--input", tmp_path / "some.jsonl", "--json").stdout)
        assert "metrics" not in found
        assert "label_name" not in found["predictions"][0]


def test_labels_of_own_files_are_classes_not_their_ids(rows_file: Path, tmp_path: Path) -> None:
    rows = [{**row, "same": 1 + row["same"]} for row in read_rows(rows_file)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    run(*fit_arguments(tmp_path / "rows.jsonl"), "--out", tmp_path / "run", *QUICK)
    (tmp_path / "rows.csv").write_text(
        "a,b,same\n" + "".join(f'"{row["a"]}","{row["b"]}",{row["same"]}\n' for row in rows), encoding="utf-8"
    )
    for name in ("rows.jsonl", "rows.csv"):
        found = json.loads(run("predict", tmp_path / "run", "--input", tmp_path / name, "--json").stdout)
        right = [row["label_name"] == row["prediction"] for row in found["predictions"]]
        assert found["metrics"]["accuracy"] == sum(right) / len(right)
        assert [row["label_name"] for row in found["predictions"]] == [str(row["same"]) for row in rows]


def test_every_option_arrives(rows_file: Path, tmp_path: Path) -> None:
    text = """
        --method monteclora_sparse --limit 20 --max-length 12 --num-samples 2 --seed 3
        --epochs 2 --lr 0.002 --posterior-lr 0.03 --weight-decay 0.04 --batch-size 5 --save-every 7
        --rank 3 --lora-alpha 6 --lora-dropout 0.1 --targets query
        --sample-scale 0.01 --num-components 2 --num-outer-samples 2 --sampler explicit
        --degrees-of-freedom 9 --prior-concentration 1.5 --init-concentration random
        --kl-weight 0.001 --cooperative-weight 0.5
        --two-phase --scale-schedule cosine --scale-warmup 0.7 --scale-per-adapter
    """
    run(*fit_arguments(rows_file), "--out", tmp_path / "run", *text.split())
    config = read_config(tmp_path / "run")
    assert (config.method, config.num_samples, config.max_length) == ("monteclora_sparse", 2, 12)
    assert config.lora == LoRAOptions(rank=3, alpha=6, dropout=0.1, targets="query")
    training = config.training
    assert (training.phases, training.scale_per_adapter) == ("means_then_posterior", True)
    assert (training.scale_schedule, training.scale_warmup) == ("cosine", 0.7)
    assert (training.epochs, training.batch_size, training.save_every, training.seed) == (2, 5, 7, 3)
    assert (training.learning_rate, training.posterior_learning_rate, training.weight_decay) == (0.002, 0.03, 0.04)
    posterior = config.posterior
    assert (posterior.num_components, posterior.num_outer_samples, posterior.sampler) == (2, 2, "explicit")
    assert (posterior.sample_scale, posterior.degrees_of_freedom, posterior.mixture) == (0.01, 9.0, "sparse")
    assert (posterior.prior_concentration, posterior.init_concentration) == (1.5, "random")
    assert (posterior.kl_weight, posterior.cooperative_weight, posterior.objective) == (0.001, 0.5, "paper")
    assert config.source is not None
    assert (config.source.limit, config.source.seed, config.source.label_column) == (20, 3, "same")
    written = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(config.to_json()))


def test_an_error_is_one_message_and_a_status(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from bayes_lora.experiments.command_line.entry import main; main()",
        "predict",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: DataError:" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_interrupted_fit_is_resumed_to_the_same_end(rows_file: Path, tmp_path: Path) -> None:
    options = [*QUICK, "--epochs", "4", "--save-every", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(*fit_arguments(rows_file), "--out", whole, *options)
    command = [sys.executable, "-c", "from bayes_lora.experiments.command_line.entry import main; main()"]
    arguments = [str(argument) for argument in (*fit_arguments(rows_file), "--out", cut, *options)]
    # As many threads as here: sums over another number of threads round differently.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
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
