"""The demo of language models in small, and its questions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bayes_lora.errors import RunExistsError
from bayes_lora.experiments.demo.language_demo import run_language_demo
from bayes_lora.experiments.demo.questions import make_questions
from bayes_lora.experiments.rows.rows import read_rows
from bayes_lora.metrics.uncertainty import auroc
from tests.experiments.commands import run


@pytest.fixture(scope="module")
def demo(decoder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    options: dict[str, Any] = {"base_model": decoder, "limit": 5, "epochs": 1, "num_samples": 2}
    return out, run_language_demo(out, seed=0, overwrite=False, console=Console(quiet=True), **options)


def test_the_page_and_the_files_say_the_same(demo: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = demo
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert set(metrics) == {"plain LoRA", "posterior predictive"}
    assert "mutual information" not in metrics["plain LoRA"]
    rows = read_rows(out / "answers.jsonl")
    assert ["completion" in row for row in rows] == [True] * 5 + [False] * 5
    entropies = torch.tensor([sum(row["total_entropy"]) / row["num_tokens"] for row in rows], dtype=torch.double)
    found = metrics["posterior predictive"]
    assert found["entropy"]["unanswerable_auroc"] == auroc(entropies, torch.arange(10) >= 5)
    assert found["accuracy"] == 0  # a random network
    assert found["entropy"]["wrong_auroc"] is None
    page = (out / "answers.html").read_text(encoding="utf-8")
    assert f"{found['entropy']['unanswerable_auroc']:.3f}" in page
    assert "Nothing can be said of wrong answers" in page
    assert page.count(">no answer exists<") == 5
    assert page.count("8 independent answers") == 10


def test_the_folder_is_a_run_that_generate_takes(demo: tuple[Path, dict[str, Any]]) -> None:
    out, _ = demo
    rows = read_rows(out / "answers.jsonl")
    again = run("generate", out, "--input", out / "answers.jsonl", "--max-new-tokens", 8, "--num-samples", 2, "--json")
    assert [row["text"] for row in json.loads(again.stdout)["texts"]] == [row["text"] for row in rows]


def test_its_questions_can_be_asked_again(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """By the command of studies, which finds what the demo says."""
    out, metrics = demo
    given = ("--input", out / "questions.jsonl", "--plain", out / "plain", "--max-new-tokens", 8, "--num-samples", 2)
    found = json.loads(run("ask", out, *given, "--answers", 0, "--out", tmp_path / "asked", "--json").stdout)
    assert set(found["tables"]) == {"unanswerable"}
    entropy = found["tables"]["unanswerable"][1]
    for name, cell in (("plain LoRA", entropy[1]), ("posterior predictive", entropy[3])):
        assert cell.startswith(f"{metrics[name]['entropy']['unanswerable_auroc']:.3f} [")


def test_an_old_demo_stays(demo: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(RunExistsError, match="exists already"):
        run("demo", "--language", "--out", demo[0])


def test_questions_with_and_without_an_answer() -> None:
    questions = make_questions()
    assert make_questions() == questions
    assert make_questions(seed=1).train != questions.train
    asked = [row["prompt"] for rows in questions for row in rows]
    assert len(set(asked)) == len(asked)  # nothing is asked that was learned from, and what is made up is not real
    assert all(row["completion"].startswith(" ") for row in (*questions.train, *questions.answerable))
    assert abs(len(questions.train) - len(questions.answerable)) <= 1
    assert len(questions.unanswerable) == 70
    facts = {row["prompt"].split(" of ")[-1]: row["completion"] for row in (*questions.train, *questions.answerable)}
    assert facts["Norway?\nAnswer:"] == " Oslo"
    assert facts["tungsten?\nAnswer:"] == " W"
