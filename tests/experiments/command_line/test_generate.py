"""`bayes-lora generate`: texts of a fitted language model, in the terminal, in files and as a page."""

import csv
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bayes_lora.errors import ConfigurationError, DataError, RunExistsError, TaskError
from bayes_lora.experiments.command_line.coloured_texts import coloured, legend
from bayes_lora.experiments.rows.completion_rows import with_prompts
from bayes_lora.experiments.rows.rows import Row, read_rows, write_jsonl
from bayes_lora.experiments.runs.runs import load_run
from bayes_lora.experiments.runs.writing import visible
from bayes_lora.inference import Sampling, generate, generate_answers
from tests.experiments.commands import run

PROMPTS = ["Answer:", 'What is <b>it</b>? "&"']
QUICK = ["--max-new-tokens", "5", "--num-samples", "2"]


@pytest.fixture(scope="module")
def writer(decoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a random decoder, whose draws disagree."""
    folder = tmp_path_factory.mktemp("writer")
    write_jsonl(folder / "rows.jsonl", [{"prompt": "Answer:", "completion": " yes"}] * 8)
    given = ("--train-file", folder / "rows.jsonl", "--task-type", "language_model", "--base-model", decoder)
    run("fit", *given, "--out", folder / "run", "--epochs", 1, "--num-samples", 2, "--lr", 0.1, "--sample-scale", 0.5)
    return folder / "run"


def asked(*prompts: str) -> list[str]:
    return [argument for prompt in prompts for argument in ("--prompt", prompt)]


def test_it_says_what_generate_says(writer: Path) -> None:
    found = json.loads(run("generate", writer, *asked(*PROMPTS), *QUICK, "--seed", 3, "--json").stdout)
    fitted = load_run(writer)
    expected = generate(
        fitted.model, fitted.guide, PROMPTS, tokenizer=fitted.processor, num_samples=2, max_new_tokens=5, seed=3
    )
    assert [row["prompt"] for row in found["texts"]] == PROMPTS
    assert [row["text"] for row in found["texts"]] == list(expected.texts or ())
    for index, row in enumerate(found["texts"]):
        there = expected.scored[index]
        for name in ("token_log_probs", "total_entropy", "aleatoric_entropy", "mutual_information"):
            assert row[name] == getattr(expected, name)[index, there].tolist()
        assert max(row["mutual_information"]) > 1e-4
        assert row["num_tokens"] == len(row["token_texts"]) == len(row["mutual_information"])
        shown = "".join(row["token_texts"])
        assert shown == fitted.processor.decode(expected.tokens[index], clean_up_tokenization_spaces=False)


def test_sampling_and_independent_answers(writer: Path) -> None:
    options = ("--answers", 3, "--temperature", 1.5, "--top-k", 40, "--top-p", 0.9, "--seed", 2)
    found = json.loads(run("generate", writer, *asked(PROMPTS[0]), *QUICK, *options, "--json").stdout)["texts"][0]
    fitted = load_run(writer)
    sampling = Sampling(temperature=1.5, top_k=40, top_p=0.9, seed=2)
    shared: dict[str, Any] = {"tokenizer": fitted.processor, "num_samples": 2, "max_new_tokens": 5, "seed": 2}
    (text,) = generate(fitted.model, fitted.guide, PROMPTS[:1], sampling=sampling, **shared).texts or ()
    assert found["text"] == text
    (answers,) = generate_answers(fitted.model, fitted.guide, PROMPTS[:1], num_answers=3, sampling=sampling, **shared)
    assert [answer["text"] for answer in found["answers"]] == list(answers.texts)
    assert [answer["log_prob"] for answer in found["answers"]] == answers.log_probs.tolist()
    assert found["predictive_entropy"] == answers.predictive_entropy
    assert 0 <= found["discrete_semantic_entropy"] <= math.log(3)


def test_answers_are_parsed_by_a_pattern(writer: Path, tmp_path: Path) -> None:
    """By their first sign, where that is a letter: others are unparsed, counted, and agree with none."""
    options = ("--answers", 6, "--answer-pattern", r"^\s*([a-zA-Z])", "--seed", 1)
    given = ("generate", writer, *asked(*PROMPTS), *QUICK, *options)
    found = json.loads(run(*given, "--json").stdout)
    texts, unparsed = found["texts"], 0
    for row in texts:
        said = [re.match(r"\s*([a-zA-Z])", answer["text"]) for answer in row["answers"]]
        letters = [None if letter is None else letter[1] for letter in said]
        assert [answer["parsed"] for answer in row["answers"]] == letters
        known = Counter(letter.lower() for letter in letters if letter is not None)
        assert row["agreement"] == max(known.values(), default=0) / 6
        assert row["num_unparsed"] == letters.count(None)
        alone = [answer["cluster"] for answer in row["answers"] if answer["parsed"] is None]
        assert len(set(alone)) == len(alone)
        unparsed += letters.count(None)
    assert 0 < unparsed < 12
    assert found["unparsed"] == {"texts": sum(row["parsed"] is None for row in texts), "answers": unparsed}
    printed = run(*given, "--out", tmp_path / "texts").stdout
    assert f"{unparsed} of 12 answers say nothing that could be parsed." in printed
    settings = json.loads((tmp_path / "texts" / "settings.json").read_text(encoding="utf-8"))
    assert settings["unparsed"] == found["unparsed"]


def test_answers_of_the_plain_adapter(writer: Path) -> None:
    given = ("generate", writer, *asked(PROMPTS[0]), "--max-new-tokens", 5, "--mean", "--answers", 5, "--json")
    (row,) = json.loads(run(*given).stdout)["texts"]
    assert len({answer["text"] for answer in row["answers"]}) > 1
    assert max(row["mutual_information"]) < 1e-9


def test_a_folder_holds_all_of_it(writer: Path, tmp_path: Path) -> None:
    out = tmp_path / "texts"
    printed = run("generate", writer, *asked(*PROMPTS), *QUICK, "--answers", 2, "--out", out).stdout
    assert str(out / "answers.html") in printed
    assert "2 answers, " in printed
    assert "\x1b" not in printed
    assert "How open the token was" not in printed  # no colours, so no legend
    files = {"answers.jsonl", "answers.html", "settings.json", "scores.csv", "answer_scores.csv"}
    assert {path.name for path in out.iterdir()} == files
    rows = read_rows(out / "answers.jsonl")
    scores, answer_scores = (table(out / name) for name in ("scores.csv", "answer_scores.csv"))
    assert [float(score["nll"]) for score in scores] == pytest.approx([-sum(row["token_log_probs"]) for row in rows])
    assert [(score["prompt"], score["answer"]) for score in answer_scores] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert (settings["num_samples"], settings["max_new_tokens"], settings["num_answers"]) == (2, 5, 2)
    with pytest.raises(RunExistsError, match=r"settings\.json exists already\. Choose another --out"):
        run("generate", writer, *asked("Answer:"), *QUICK, "--out", out)
    run("generate", writer, *asked("Answer:"), *QUICK, "--out", out, "--overwrite")
    assert {path.name for path in out.iterdir()} == files - {"answer_scores.csv"}
    write_jsonl(tmp_path / "again.jsonl", rows)  # what they say of answers is gone, since no new ones are asked for
    found = json.loads(run("generate", writer, "--input", tmp_path / "again.jsonl", *QUICK, "--json").stdout)["texts"]
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    assert not any({"answers", "agreement", "semantic_entropy"} & set(row) for row in found)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """The tokens of a page's texts, with their numbers, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tokens: list[tuple[str, list[float]]] = []
        self.links: list[str] = []
        self.prompts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value for name in ("src", "href") if (value := given.get(name))]
        if tag in ("span", "p"):
            self._inside = given.get("class") or ""
        if self._inside.split()[:1] == ["t"]:
            self.tokens.append(("", [float(number) for number in str(given["data-n"]).split()]))
        if self._inside == "prompt":
            self.prompts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside.split()[:1] == ["t"]:
            self.tokens[-1] = (self.tokens[-1][0] + data, self.tokens[-1][1])
        if self._inside == "prompt":
            self.prompts[-1] += data


def test_the_page_stands_alone_and_shows_every_token(writer: Path, tmp_path: Path) -> None:
    run("generate", writer, *asked(*PROMPTS), *QUICK, "--out", tmp_path / "texts")
    rows = read_rows(tmp_path / "texts" / "answers.jsonl")
    page = Page((tmp_path / "texts" / "answers.html").read_text(encoding="utf-8"))
    assert page.links == ["data:,"]
    assert page.prompts == PROMPTS
    shown = iter(page.tokens)
    for row in rows:
        columns = ("token_texts", "token_log_probs", "total_entropy", "aleatoric_entropy", "mutual_information")
        last = row["num_tokens"] - 1
        for index, (text, *numbers) in enumerate(zip(*(row[name] for name in columns), strict=True)):
            seen, values = next(shown)
            assert seen == ("end" if row["finished"] and index == last else visible(text).replace("\n", "↵\n"))
            assert values == pytest.approx(numbers, abs=6e-4, rel=1e-3)
    assert next(shown, None) is None


def test_rows_of_a_file(writer: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Is it red?"}]
    rows: list[Row] = [
        {"prompt": "Answer:", "number": 7},
        {"messages": [*messages, {"role": "assistant", "content": "It is."}]},
        {"messages": messages},
        {"instruction": "Is it?", "output": "yes"},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    given = ("--input", tmp_path / "rows.jsonl", "--mean", "--max-new-tokens", 3, "--json")
    found = json.loads(run("generate", writer, *given).stdout)["texts"]
    assert found[0]["number"] == 7
    assert found[1]["text"] == found[2]["text"]
    assert [row.get("completion") for row in found] == [None, "It is.", None, "yes"]
    assert all(abs(value) < 1e-9 for row in found for value in row["mutual_information"])
    chat = json.loads(run("generate", writer, "--prompt", "Is it red?", "--chat", *given[2:]).stdout)["texts"]
    assert chat[0]["text"] == found[2]["text"]
    write_jsonl(tmp_path / "rows.jsonl", [rows[0], {"text": "a"}])
    with pytest.raises(DataError, match=r"row 2 has neither 'prompt', nor 'messages', nor 'instruction'; it has text"):
        run("generate", writer, *given)
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": 3}])
    with pytest.raises(DataError, match="row 1, column 'prompt': it must be text, or a list"):
        run("generate", writer, *given)
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": []}])
    with pytest.raises(DataError, match="row 1, column 'messages': they must be a list"):
        run("generate", writer, *given)


def test_columns_of_ones_own() -> None:
    rows: list[Row] = [{"q": "a", "note": 1}, {"prompt": "b"}]
    assert with_prompts(rows, "rows.jsonl", "q") == [{"q": "a", "note": 1, "prompt": "a"}, {"prompt": "b"}]


def row_of(entropies: list[float]) -> dict[str, Any]:
    """A text of as many tokens."""
    count = len(entropies)
    each = {"token_texts": ["a", " [b]", "\n", " c"][:count], "token_log_probs": [math.log(0.4)] * count}
    return {**each, "total_entropy": entropies, "mutual_information": [0.0, 0.02, 0.06, 0.3][:count]}


def test_what_a_network_wrote_is_shown_and_not_obeyed() -> None:
    assert visible("a\tb\n\x1b[2J\r\x00\x9b") == "a\tb\n␛[2J␍␀�"
    row = {**row_of([0.0]), "token_texts": ["\x1b[31mred"]}
    assert coloured(row, "entropy").plain == "␛[31mred"


def test_colours_say_what_the_legend_says() -> None:
    row = row_of([0.0, 0.3, 1.0, 2.0])
    text = coloured(row, "entropy")
    assert text.plain == "a [b]\n c"
    by_entropy, shown = [str(span.style) for span in text.spans], legend("entropy")
    assert by_entropy == [str(span.style) for span in shown.spans]
    assert len(set(by_entropy)) == 3  # and the surest has none
    assert "sure (below 0.2 nats)" in shown.plain
    assert [str(span.style) for span in coloured(row, "mutual-information").spans] == by_entropy
    assert {str(span.style) for span in coloured(row, "probability").spans} == {by_entropy[1]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --prompt, once or several times, or --input"),
        (["--prompt", "a", "--input", "b.jsonl"], "Give --prompt, once or several times, or --input"),
        (["--prompt", "a", "--temperature", "0"], r"temperature=0\.0 must be positive"),
        (["--prompt", "a", "--top-p", "2"], r"top_p=2\.0 must be above 0"),
        (["--prompt", "a", "--num-samples", "0"], "num_samples=0"),
        (["--prompt", "a", "--answers", "-1"], "num_answers=-1"),
        (["--prompt", "a", "--seed", "-1"], "seed=-1"),
        (["--prompt", "a", "--mean", "--num-samples", "4"], "--mean draws nothing, so --num-samples would do nothing"),
        (["--prompt", "a", "--answer-pattern", "(a"], r"the answer pattern '\(a' is no regular expression: missing \)"),
        (["--prompt", "a", "--answer-pattern", "a", "--parse", "word"], "Give one of them"),
        (["--prompt", "a", "--same", "meaning"], "--same is about independent answers.*Add --answers"),
        (["--input", "b.jsonl", "--chat"], "--chat is about --prompt"),
    ],
)
def test_refused_before_anything_is_loaded(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run("generate", tmp_path / "no run there", *arguments)


def test_runs_that_write_nothing(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="of type classification, whose network writes nothing"):
        run("generate", fitted[0], "--prompt", "a")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file, so nothing can be written into it"):
        run("generate", fitted[0], "--prompt", "a", "--out", tmp_path / "file")
