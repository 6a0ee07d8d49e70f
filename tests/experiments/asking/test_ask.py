"""`bayes-lora ask`, on a random network: its numbers, its files, and a study that is gone on with."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_lora.errors import ConfigurationError, RunExistsError, TaskError
from bayes_lora.experiments.asking import study as studies
from bayes_lora.experiments.asking.report import PICTURE_FILE, RESULTS_FILE, TABLE_FILE
from bayes_lora.experiments.asking.scores import BASELINE, OF_ANSWERS, OF_DRAWS, OF_TEXTS
from bayes_lora.experiments.rows.rows import Row, read_rows, write_jsonl
from bayes_lora.experiments.runs.runs import load_run
from bayes_lora.inference import Sampling, generate, generate_answers, out_of_distribution_auroc
from bayes_lora.metrics.uncertainty import auroc
from bayes_lora.randomness import stream
from tests.experiments.commands import run

PROMPTS = [f"{number} and {number % 4}, Answer:" for number in range(12)]
QUICK = ["--max-new-tokens", 3, "--num-samples", 2, "--answers", 3, "--seed", 1]


@pytest.fixture(scope="module")
def writer(decoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a random decoder, whose draws disagree."""
    folder = tmp_path_factory.mktemp("writer")
    write_jsonl(folder / "rows.jsonl", [{"prompt": "Answer:", "completion": " yes"}] * 8)
    given = ("--train-file", folder / "rows.jsonl", "--task-type", "language_model", "--base-model", decoder)
    run("fit", *given, "--out", folder / "run", "--epochs", 1, "--num-samples", 2, "--lr", 0.05, "--sample-scale", 0.3)
    return folder / "run"


@pytest.fixture(scope="module")
def asked(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], Any]:
    """A study's folder, the command that made it, and what that printed. Of three questions one has what the network
    writes for its answer, one something else, and one none."""
    folder, fitted = tmp_path_factory.mktemp("asked"), load_run(writer)
    texts = generate(
        fitted.model, fitted.guide, PROMPTS, tokenizer=fitted.processor, num_samples=2, max_new_tokens=3, seed=1
    )
    rows: list[Row] = [{"prompt": prompt} for prompt in PROMPTS]
    for index, text in enumerate(texts.texts or ()):
        if index % 3:
            rows[index]["answer"] = ["no such thing", text] if index % 3 == 1 else "no such thing"
    write_jsonl(folder / "questions.jsonl", rows)
    given = ["ask", f"ours={writer}", "--input", folder / "questions.jsonl", "--out", folder / "study", *QUICK]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "_PART", 5)
        printed = json.loads(run(*given, "--json").stdout)
    return folder / "study", given, printed


def parts_of(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / "asked" / kind / "ours").iterdir())


def rows_of(folder: Path, kind: str) -> list[Row]:
    return [row for path in parts_of(folder, kind) for row in read_rows(path)]


@pytest.mark.parametrize("kind", ["plain", "posterior"])
def test_scores_are_those_of_generate(kind: str, writer: Path, asked: tuple[Path, list[Any], Any]) -> None:
    fitted, rows = load_run(writer), rows_of(asked[0], kind)
    shared: dict[str, Any] = {"tokenizer": fitted.processor, "num_samples": 2, "max_new_tokens": 3, "seed": 1}
    shared["at_mean"] = kind == "plain"
    assert [row["question"] for row in rows] == list(range(12))
    assert [row["right"] is None for row in rows] == [index % 3 == 0 for index in range(12)]
    texts = generate(fitted.model, fitted.guide, PROMPTS, **shared)
    expected = {name for name in (*OF_TEXTS, *OF_ANSWERS) if kind == "posterior" or name not in OF_DRAWS}
    for index, row in enumerate(rows):
        assert row["text"] == (texts.texts or ())[index]
        assert set(row["scores"]) == expected
        for name in expected & OF_TEXTS.keys():
            assert row["scores"][name] == pytest.approx(float(texts.scores()[name][index]), rel=1e-5, abs=1e-9)
    sampling = Sampling(seed=stream(1, 5) >> 32)  # of the second part
    answers = generate_answers(fitted.model, fitted.guide, PROMPTS[5:10], num_answers=3, sampling=sampling, **shared)
    for row, found in zip(rows[5:10], answers, strict=True):
        assert [answer["text"] for answer in row["answers"]] == list(found.texts)
        assert row["scores"]["predictive_entropy"] == pytest.approx(found.predictive_entropy, rel=1e-5)
        assert row["scores"]["disagreement"] == 1 - row["agreement"]


def test_the_numbers_are_those_of_the_rows(asked: tuple[Path, list[Any], Any]) -> None:
    folder, _, printed = asked
    with (folder / RESULTS_FILE).open(newline="", encoding="utf-8") as file:
        results = {(row["target"], row["predictor"], row["score"]): row for row in csv.DictReader(file)}
    aurocs = {}
    for kind, predictor in (("plain", "plain adapter"), ("posterior", "posterior")):
        rows = rows_of(folder, kind)
        for score in rows[0]["scores"]:
            values = torch.tensor([row["scores"][score] for row in rows], dtype=torch.double)
            none = torch.tensor([row["right"] is None for row in rows])
            aurocs["unanswerable", predictor, score] = out_of_distribution_auroc(values[~none], values[none])
            wrong = torch.tensor([row["right"] is False for row in rows])
            aurocs["wrong", predictor, score] = auroc(values[~none], wrong[~none])
    known = {key for key in aurocs if key[0] == "unanswerable" or aurocs[key] == aurocs[key]}
    assert {key for key, row in results.items() if row["auroc"]} == known
    for key in known:
        baseline = aurocs[key[0], "plain adapter", BASELINE]
        assert float(results[key]["auroc"]) == pytest.approx(aurocs[key], rel=1e-5)
        if baseline == baseline:
            assert float(results[key]["minus_baseline"]) == pytest.approx(aurocs[key] - baseline, abs=1e-5)
    assert "wrong" in printed["tables"]  # the posterior is right about some
    assert "posterior: 50.0 % of 8 answers right." in printed["right"]
    page = (folder / TABLE_FILE).read_text(encoding="utf-8")
    assert f"{aurocs['unanswerable', 'posterior', 'semantic_entropy']:.3f} [" in page
    assert (folder / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")


def test_it_goes_on_where_it_was_stopped(asked: tuple[Path, list[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is not asked again, and what is asked again says the same."""
    monkeypatch.setattr(studies, "_PART", 5)
    folder, given, printed = asked
    parts = parts_of(folder, "posterior")
    assert len(parts) == 3
    lost, kept = read_rows(parts[1]), {path: path.stat().st_mtime_ns for path in (parts[0], parts[2])}
    results = (folder / RESULTS_FILE).read_bytes()
    parts[1].unlink()
    (folder / RESULTS_FILE).unlink()
    assert json.loads(run(*given, "--json").stdout) == printed
    assert read_rows(parts[1]) == lost
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (folder / RESULTS_FILE).read_bytes() == results
    sessions = json.loads((folder / "sessions.json").read_text(encoding="utf-8"))
    assert [len(session["jobs"]) for session in sessions] == [6, 1]
    with pytest.raises(RunExistsError, match=r"holds a study with other settings \(writing"):
        run(*given[:-1], 2)


def test_a_plain_adapter_of_its_own_and_parsed_answers(
    writer: Path, asked: tuple[Path, list[Any], Any], tmp_path: Path
) -> None:
    given = [
        "ask",
        writer,
        "--plain",
        f"lora={writer}",
        "--input",
        asked[1][3],
        "--limit",
        4,
        "--out",
        tmp_path / "study",
    ]
    pattern = ("--answer-pattern", "([a-z])", "--max-new-tokens", 3, "--num-samples", 2, "--answers", 2)
    printed = run(*given, *pattern).stdout
    assert "texts could not be parsed" in printed
    assert "of 8 independent answers could not be parsed" in printed
    rows = read_rows(tmp_path / "study" / "asked" / "plain" / "lora" / "000000.jsonl")
    assert all(row["parsed"] is None or row["parsed"] in row["text"] for row in rows)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--answer-pattern", "("], ConfigurationError, "is no regular expression"),
        (["--plain", "a", "--plain", "b"], ConfigurationError, "there are 2 plain adapters for 1 runs"),
        (["--limit", "0"], ConfigurationError, "limit=0"),
        (["--answers", "-1"], ConfigurationError, "num_answers=-1"),
    ],
)
def test_refused_before_anything_is_loaded(
    options: list[str], error: type[Exception], message: str, asked: tuple[Path, list[Any], Any], tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run("ask", tmp_path / "no run", "--input", asked[1][3], "--out", tmp_path / "study", *options)
    assert not (tmp_path / "study").exists()


def test_a_run_that_writes_nothing(
    fitted: tuple[Path, Any], asked: tuple[Path, list[Any], Any], tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match="whose network writes nothing"):
        run("ask", fitted[0], "--input", asked[1][3], "--out", tmp_path / "study")
