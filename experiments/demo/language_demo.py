"""The demo of language models: SmolLM2 learns to answer in a word, and how sure it is of what it cannot know."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.asking.questions import Question
from bayes_lora.experiments.asking.scores import BASELINE, OF_DRAWS
from bayes_lora.experiments.asking.telling import NO_ANSWER, WRONG, Asked
from bayes_lora.experiments.demo.questions import Questions, make_questions
from bayes_lora.experiments.reports.page import Section, TableData
from bayes_lora.experiments.reports.texts_page import write_texts_page
from bayes_lora.experiments.rows.completion_rows import COMPLETION, PROMPT
from bayes_lora.experiments.rows.rows import Row, write_jsonl
from bayes_lora.experiments.runs.machine import environment
from bayes_lora.experiments.runs.outputs import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    POSTERIOR_FOLDER,
    check_folder,
    claim_folder,
)
from bayes_lora.experiments.runs.run_card import write_run_card
from bayes_lora.experiments.runs.run_config import RunConfig
from bayes_lora.experiments.runs.runs import Run, new_run, train
from bayes_lora.experiments.runs.writing import Writing, clustering_of, described_answers, described_text
from bayes_lora.experiments.tasks.tasks import Task
from bayes_lora.files import write_json
from bayes_lora.inference import (
    FitOptions,
    Generation,
    Sampling,
    generate,
    generate_answers,
    save_posterior,
)
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.metrics.bootstrap import resampled_difference

PAGE_FILE, ANSWERS_FILE = "answers.html", "answers.jsonl"
# What `bayes-lora ask` takes: all questions that were asked, and plain LoRA as a run.
QUESTIONS_FILE, PLAIN_FOLDER = "questions.jsonl", "plain"
_TASK = Task("questions", (PROMPT,), COMPLETION, (), task_type="language_model", max_length=128)
# Without noise and KL, the same training is plain LoRA.
_PLAIN = MonteCLoRAConfig(sample_scale=0.0, kl_weight=0.0, cooperative_weight=0.0)
_POSTERIOR = MonteCLoRAConfig(sample_scale=0.05)
_PLAIN_LORA, _PREDICTIVE = "plain LoRA", "posterior predictive"
_SCORES = {
    "entropy": BASELINE,
    "log-probability": "nll_per_token",
    "mutual information": "mutual_information_per_token",
}
_SHOWN = 12  # questions of each kind on the page, with independent answers
_ANSWERS = 8
_MOST_TOKENS = 8


def run_language_demo(
    out: Path,
    *,
    seed: int,
    overwrite: bool,
    console: Console,
    base_model: str = "smollm2",
    limit: int | None = None,
    epochs: int = 3,
    num_samples: int = 8,
) -> dict[str, Any]:
    """Fit the posterior and plain LoRA to questions, ask others, some without an answer, and write a page.

    The folder is a run that `generate` and `ask` take, with `answers.html` and `answers.jsonl` besides, and with all
    questions and plain LoRA, as a run, for `ask`. Returns the metrics.

    Args:
        out, seed, overwrite, console: see `run_demo`.
        base_model: a decoder.
        limit: the first so many questions of each kind only.
        epochs: over the questions to learn from.
        num_samples: draws of the posterior.

    Raises:
        RunExistsError: `out` exists and `overwrite` was not said.
        BaseModelError: SmolLM2 is not installed.
    """
    check_folder(out, overwrite=overwrite)
    questions = Questions(*(rows[:limit] for rows in make_questions(seed=seed)))
    config = RunConfig(
        task=_TASK,
        base_model=base_model,
        posterior=_POSTERIOR,
        training=FitOptions(epochs=epochs, batch_size=8, learning_rate=1e-3, seed=seed),
        lora=LoRAOptions(targets="q_proj,v_proj"),
        num_samples=num_samples,
    )
    without_noise = replace(config, posterior=_PLAIN)
    plain, run = new_run(without_noise), new_run(config)
    data = run.encode(questions.train)
    # All that can fail early has been tried: now an old demo may go.
    claim_folder(out, overwrite=overwrite)
    for folder, made in ((out / PLAIN_FOLDER, without_noise), (out, config)):
        write_json(folder / CONFIG_FILE, made.to_json())
        write_json(folder / ENVIRONMENT_FILE, environment())
    write_jsonl(out / QUESTIONS_FILE, [*questions.answerable, *questions.unanswerable])
    console.print("1 of 4: plain LoRA, for comparison")
    train(plain, data, console)
    save_posterior(plain.model, plain.guide, out / PLAIN_FOLDER / POSTERIOR_FOLDER)
    console.print("2 of 4: LoRA with the MonteCLoRA posterior")
    result = train(run, data, console)
    save_posterior(run.model, run.guide, out / POSTERIOR_FOLDER)
    console.print("3 of 4: both answer questions that they have not seen")
    writing = Writing(num_samples=num_samples, max_new_tokens=_MOST_TOKENS, num_answers=_ANSWERS, seed=seed)
    asked = {
        _PLAIN_LORA: _Written.of(plain, questions, writing, at_mean=True),
        _PREDICTIVE: _Written.of(run, questions, writing, at_mean=False),
    }
    console.print("4 of 4: independent answers to some of them")
    rows, marks = _shown(run, questions, asked[_PREDICTIVE], writing)
    metrics = {name: found.metrics() for name, found in asked.items()}
    write_jsonl(out / HISTORY_FILE, result.history)
    write_jsonl(out / ANSWERS_FILE, rows)
    write_run_card(out, config, {"num_train": len(questions.train)})
    title = "bayes_lora demo: how sure is a language model of its answers?"
    sections = [_what(config, questions), _how_good(asked, metrics)]
    write_texts_page(out / PAGE_FILE, title, rows, writing.described(), marks=marks, sections=sections)
    write_json(out / PLAIN_FOLDER / METRICS_FILE, metrics[_PLAIN_LORA])
    write_json(out / METRICS_FILE, metrics)
    return metrics


@dataclass(frozen=True)
class _Written:
    """What one predictor wrote behind all questions, those with an answer first, and what that is worth."""

    texts: Generation
    asked: Asked

    @classmethod
    def of(cls, run: Run, questions: Questions, writing: Writing, *, at_mean: bool) -> "_Written":
        rows = [*questions.answerable, *questions.unanswerable]
        texts = generate(
            run.model,
            run.guide,
            [row[PROMPT] for row in rows],
            tokenizer=run.processor,
            num_samples=writing.num_samples,
            max_new_tokens=writing.max_new_tokens,
            seed=writing.seed,
            at_mean=at_mean,
        )
        known = [Question(row[PROMPT], (row[COMPLETION],) if COMPLETION in row else ()) for row in rows]
        right = [question.is_right(text) for text, question in zip(texts.texts or (), known, strict=True)]
        scores = {
            name: texts.scores()[score] for name, score in _SCORES.items() if not at_mean or score not in OF_DRAWS
        }
        answerable = torch.tensor([bool(question.answers) for question in known])
        return cls(texts, Asked(scores, torch.tensor(right), answerable))

    def metrics(self) -> dict[str, Any]:
        """Accuracy, and AUROCs of each score; None where all answers are right, or wrong."""
        found: dict[str, Any] = {"accuracy": 1 - self.asked.wrong.mean().item()}
        for score in self.asked.scores:
            values = {f"{target}_auroc": self.asked.auroc(target, score) for target in (WRONG, NO_ANSWER)}
            found[score] = {name: None if math.isnan(value) else value for name, value in values.items()}
        return found


def _shown(run: Run, questions: Questions, asked: _Written, writing: Writing) -> tuple[list[Row], list[str]]:
    """Some questions of both kinds with text and independent answers, and a word for each."""
    known = len(questions.answerable)
    places = [*range(known)[:_SHOWN], *(known + index for index in range(len(questions.unanswerable))[:_SHOWN])]
    every = [*questions.answerable, *questions.unanswerable]
    answers = generate_answers(
        run.model,
        run.guide,
        [every[place][PROMPT] for place in places],
        tokenizer=run.processor,
        num_answers=writing.num_answers,
        num_samples=writing.num_samples,
        max_new_tokens=writing.max_new_tokens,
        sampling=Sampling(seed=writing.seed),
        seed=writing.seed,
    )
    same = clustering_of("words")
    rows = [
        {**every[place], **described_text(run, asked.texts, place), **described_answers(found, same)}
        for place, found in zip(places, answers, strict=True)
    ]
    marks = [
        "no answer exists" if place >= known else ("wrong", "right")[int(asked.asked.right[place])] for place in places
    ]
    return rows, marks


def _what(config: RunConfig, questions: Questions) -> Section:
    return Section(
        "What was asked",
        (
            "Capitals of countries and of states, and symbols of chemical elements. "
            f"{config.base_model} learned from {len(questions.train)} questions, {config.training.epochs} times each. "
            f"It was asked {len(questions.answerable)} others, and {len(questions.unanswerable)} about things that "
            "are made up: nobody can answer these, and it learned from none such. Once as plain LoRA, "
            "once with the MonteCLoRA posterior over the LoRA-A matrices (sample scale "
            f"{config.posterior.sample_scale:g}), whose {config.num_samples} draws write each answer together.",
        ),
    )


def _how_good(asked: Mapping[str, _Written], metrics: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = []
    for name, found in metrics.items():
        for score in filter(found.__contains__, _SCORES):
            cells = ("-" if value is None else f"{value:.3f}" for value in found[score].values())
            rows.append((f"{name}, {score}", f"{100 * found['accuracy']:.0f}", *cells))
    table = TableData(
        "Area under the ROC curve: the share of pairs of a wrong and a right answer (of a question without an answer "
        "and one with) in which the former has the larger score by token; .5 is chance, 1 perfect.",
        ("", "right, %", "wrong or right", "no answer or one"),
        tuple(rows),
    )
    words = [_difference(asked, name, what) for name, what in ((WRONG, "wrong answers"), (NO_ANSWER, "made-up things"))]
    words.append("This is one seed on one small task; another may say otherwise.")
    return Section("How well it tells what it does not know", tuple(words), (table,))


def _difference(asked: Mapping[str, _Written], name: str, what: str) -> str:
    """In a sentence, what the posterior is better in than plain LoRA, by entropy, with the bootstrap's interval."""
    ours, theirs = ([asked[of].asked.resampled(name, "entropy")] for of in (_PREDICTIVE, _PLAIN_LORA))
    found = resampled_difference(ours, theirs)
    if math.isnan(found.estimate):
        return f"Nothing can be said of {what}: all answers are right, or all are wrong."
    verdict = "better than" if found.low > 0 else "worse than" if found.high < 0 else "not clearly different from"
    return (
        f"At telling {what} by entropy, the posterior is {verdict} plain LoRA: its AUROC is larger by "
        f"{found.estimate:+.3f}, with a 95 % interval over questions of [{found.low:+.3f}, {found.high:+.3f}]."
    )
