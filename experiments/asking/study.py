"""A study of answers: language models are asked questions, a part at a time, in a folder that it can go on in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bayes_lora.choices import SameAnswers
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.asking.questions import Question
from bayes_lora.experiments.asking.scores import OF_DRAWS, TITLES, scores_of_answers, scores_of_text
from bayes_lora.experiments.asking.telling import Asked
from bayes_lora.experiments.rows.rows import Row, read_rows, write_jsonl
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.experiments.runs.run_config import read_config
from bayes_lora.experiments.runs.runs import Run, load_run
from bayes_lora.experiments.runs.sessions import Session
from bayes_lora.experiments.runs.study_folder import only_one, open_study
from bayes_lora.experiments.runs.writing import Writing, clustering_of, described_answers, require_writer
from bayes_lora.files import sha256_of
from bayes_lora.inference import AnswerParser, Sampling, generate, generate_answers
from bayes_lora.inference.generation.semantic_entropy import Clustering
from bayes_lora.randomness import stream

PLAIN, POSTERIOR = "plain adapter", "posterior"
_FOLDERS = {PLAIN: "plain", POSTERIOR: "posterior"}
_ASKED = "asked"
# Questions that are asked and kept together. The streams of their answers' tokens count from the first of them.
_PART = 16


@dataclass(frozen=True)
class AskingStudy:
    """Who is asked what, and how it answers.

    Attributes:
        runs: folders of fitted language models, by name. Several are the same posterior under several seeds: numbers
            are means over them.
        plain: folders of plain adapters to compare with, one for each run or none. Without any, the plain adapter is
            the run's own, at its posterior's mean.
        questions: what is asked.
        writing: how texts and answers are written; `at_mean` is not used.
        same: when answers are, see `clustering_of`.
        parse: what of a text is its answer; None takes the text.

    Raises:
        ConfigurationError: no run, or another number of plain adapters than of runs.
    """

    runs: Mapping[str, Path]
    questions: Sequence[Question]
    writing: Writing
    plain: Mapping[str, Path] | None = None
    same: SameAnswers = "words"
    parse: AnswerParser | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigurationError("there is no run to ask. Give folders that 'bayes-lora fit' wrote.")
        if self.plain and len(self.plain) != len(self.runs):
            raise ConfigurationError(
                f"there are {len(self.plain)} plain adapters for {len(self.runs)} runs, and each is compared with one "
                "of the same seed. Give as many, or none: then it is the run's own at its mean."
            )

    @property
    def predictors(self) -> dict[str, dict[str, Path]]:
        """The folders of each of the two, by name."""
        return {PLAIN: dict(self.plain or self.runs), POSTERIOR: dict(self.runs)}

    def to_json(self) -> dict[str, Any]:
        """All that the results depend on: of a run, its posterior's checksum."""
        sums = {
            kind: {name: sha256_of(folder / "posterior" / "bayes_lora.json") for name, folder in folders.items()}
            for kind, folders in self.predictors.items()
        }
        parse = None if self.parse is None else self.parse.pattern
        asked = [asdict(question) for question in self.questions]
        return {"runs": sums, "writing": self.writing.to_json(), "same": self.same, "parse": parse, "questions": asked}


def run_asking_study(
    study: AskingStudy, folder: Path, *, console: Console, device: torch.device = CPU
) -> dict[str, list[list[Row]]]:
    """What each predictor answered: of every run a row a question; what is there already is not asked again.

    A row has the `text`, whether it is `right` (None where there is no answer), its `scores`, and the `answers`.

    Raises:
        DataError: a folder that is no finished run.
        TaskError: a run that writes nothing.
        RunExistsError: `folder` holds another study, or another process works on it.
    """
    for folders in study.predictors.values():
        for place in folders.values():
            require_writer(read_config(place).task)
    clustering = clustering_of(study.same)
    open_study(folder, study.to_json(), growing=())
    found: dict[str, list[list[Row]]] = {}
    with only_one(folder):
        session = Session.start(folder, device=str(device))
        for kind, folders in study.predictors.items():
            found[kind] = [
                _asked(study, kind, name, place, folder, clustering, session, console, device)
                for name, place in folders.items()
            ]
    return found


def asked_of(rows: Sequence[Row]) -> Asked:
    """The scores of all questions, and which are answered right."""
    names = [name for name in TITLES if name in rows[0]["scores"]]
    scores = {name: torch.tensor([row["scores"][name] for row in rows], dtype=torch.double) for name in names}
    answerable = torch.tensor([row["right"] is not None for row in rows])
    return Asked(scores, torch.tensor([bool(row["right"]) for row in rows]), answerable)


def _asked(
    study: AskingStudy,
    kind: str,
    name: str,
    place: Path,
    folder: Path,
    clustering: Clustering,
    session: Session,
    console: Console,
    device: torch.device,
) -> list[Row]:
    """One run's rows; it is loaded where some are missing."""
    parts = [range(start, min(start + _PART, len(study.questions))) for start in range(0, len(study.questions), _PART)]
    paths = {part: folder / _ASKED / _FOLDERS[kind] / name / f"{part.start:06d}.jsonl" for part in parts}
    missing = [part for part in parts if not paths[part].is_file()]
    if missing:
        run = load_run(place, device)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            for part in progress.track(missing, description=f"{name}, {kind}"):
                paths[part].parent.mkdir(parents=True, exist_ok=True)
                write_jsonl(paths[part], list(_answered(study, run, part, clustering, at_mean=kind == PLAIN)))
                session.done(predictor=kind, run=name, first=part.start)
    return [row for part in parts for row in read_rows(paths[part])]


def _answered(study: AskingStudy, run: Run, part: range, clustering: Clustering, *, at_mean: bool) -> Iterator[Row]:
    """The rows of some questions, in order."""
    writing, parse = study.writing, study.parse
    questions = [study.questions[index] for index in part]
    shared: dict[str, Any] = {
        "tokenizer": run.processor,
        "num_samples": writing.num_samples,
        "max_new_tokens": writing.max_new_tokens,
        "seed": writing.seed,
        "at_mean": at_mean,
        "batch_size": writing.batch_size,
    }
    prompts = [question.prompt for question in questions]
    texts = generate(run.model, run.guide, prompts, sampling=writing.sampling, **shared)
    assert texts.texts is not None
    sampling = replace(writing.sampling or Sampling(), seed=stream(writing.seed, part.start) >> 32)
    several = (
        generate_answers(run.model, run.guide, prompts, num_answers=writing.num_answers, sampling=sampling, **shared)
        if writing.num_answers
        else None
    )
    for index, question in enumerate(questions):
        scores, described = scores_of_text(texts, index), {}
        if several is not None:
            described = described_answers(several[index], clustering, parse)
            scores |= scores_of_answers(several[index], described)
        if at_mean:
            scores = {name: value for name, value in scores.items() if name not in OF_DRAWS}
        text = texts.texts[index]
        yield {
            "question": part[index],
            "text": text,
            **({} if parse is None else {"parsed": parse(text)}),
            "right": question.is_right(text, parse) if question.answers else None,
            "scores": scores,
            **{name: described[name] for name in ("answers", "agreement", "num_unparsed") if name in described},
        }
