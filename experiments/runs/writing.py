"""What a run writes behind prompts, as rows."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bayes_lora.checks import require_count, require_seed
from bayes_lora.choices import SameAnswers, TokenMeasure
from bayes_lora.errors import TaskError
from bayes_lora.experiments.rows.completion_rows import PROMPT
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.runs.runs import Run
from bayes_lora.experiments.tasks.tasks import Task
from bayes_lora.inference import (
    AnswerParser,
    Answers,
    Generation,
    Sampling,
    by_embedding,
    by_relation,
    generate,
    generate_answers,
)
from bayes_lora.inference.generation.semantic_entropy import Clustering
from bayes_lora.inference.generation.token_texts import token_texts

# What rows say of a text and of its independent answers, beside the columns of the task's family.
_OF_A_TEXT = ("text", "finished", "token_texts", "parsed")
_OF_ANSWERS = (
    *("answers", "agreement", "num_unparsed"),
    *("predictive_entropy", "semantic_entropy", "discrete_semantic_entropy"),
)

_SIGNS = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(127, 160), "\N{REPLACEMENT CHARACTER}"),
}


@dataclass(frozen=True)
class Writing:
    """How texts are written; see `generate` and `generate_answers`, whose options these are.

    Attributes:
        num_answers: independent answers to each prompt beside the text, 0 for none. Without `sampling` their tokens are
            sampled as they are, while the text has the likeliest.

    Raises:
        ConfigurationError: a number that it cannot be.
    """

    num_samples: int = 8
    max_new_tokens: int = 64
    sampling: Sampling | None = None
    num_answers: int = 0
    seed: int = 0
    at_mean: bool = False
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            require_count(name, getattr(self, name))
        if self.num_answers != 0:
            require_count("num_answers", self.num_answers)
        require_seed("seed", self.seed)

    def described(self) -> str:
        """In a sentence."""
        draws = "the posterior's mean" if self.at_mean else f"{self.num_samples} draws of the posterior together"
        if self.sampling is None:
            tokens = "the likeliest token each time"
        else:
            limits = {
                "temperature": self.sampling.temperature,
                "top-k": self.sampling.top_k,
                "top-p": self.sampling.top_p,
            }
            named = [f"{name} {value:g}" for name, value in limits.items() if value is not None]
            tokens = f"tokens sampled at {', '.join(named)}"
        return f"Written by {draws}, {tokens}, seed {self.seed}."

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Written:
    """Texts, and independent answers where these were asked for.

    Attributes:
        rows: one a prompt: what its row had, and what was written, see `described_text` and `described_answers`.
        scores: a table of the texts' scores.
        answer_scores: one of those of all answers, empty where there are none.
    """

    rows: list[Row]
    scores: list[Row]
    answer_scores: list[Row]

    @property
    def unparsed(self) -> dict[str, int]:
        """How many texts and answers say nothing that could be told, where they were parsed."""
        texts = [row["parsed"] is None for row in self.rows if "parsed" in row]
        answers = [row["num_unparsed"] for row in self.rows if "num_unparsed" in row]
        return {**({"texts": sum(texts)} if texts else {}), **({"answers": sum(answers)} if answers else {})}


def require_writer(task: Task) -> None:
    """A run of a language model.

    Raises:
        TaskError: another one.
    """
    if task.task_type != "language_model":
        raise TaskError(
            f"this run's task is of type {task.task_type}, whose network writes nothing. Fit one with "
            "--task-type language_model."
        )


def write_texts(
    run: Run, rows: Sequence[Row], writing: Writing, same: SameAnswers = "words", parse: AnswerParser | None = None
) -> Written:
    """Continue the prompt of each row.

    Args:
        run: of a language model.
        rows: with a `prompt` each, see `with_prompts`; what they said of other texts before is replaced.
        writing: how.
        same: when answers are, see `clustering_of`.
        parse: takes from a text what it says, and it is that which is the same; None takes the text as it is.

    Raises:
        DataError: see `generate`.
    """
    prompts = [row[PROMPT] for row in rows]
    shared: dict[str, Any] = {
        "tokenizer": run.processor,
        "num_samples": writing.num_samples,
        "max_new_tokens": writing.max_new_tokens,
        "seed": writing.seed,
        "batch_size": writing.batch_size,
    }
    texts = generate(run.model, run.guide, prompts, sampling=writing.sampling, at_mean=writing.at_mean, **shared)
    said = {*_OF_A_TEXT, *_OF_ANSWERS, *run.config.task.family.output_columns}
    kept = [{name: value for name, value in row.items() if name not in said} for row in rows]
    described = [{**row, **described_text(run, texts, index, parse)} for index, row in enumerate(kept)]
    if writing.num_answers == 0:
        return Written(described, texts.table(), [])
    clustering = clustering_of(same)
    sampling = Sampling(seed=writing.seed) if writing.sampling is None else writing.sampling
    shared |= {"num_answers": writing.num_answers, "at_mean": writing.at_mean}
    found = generate_answers(run.model, run.guide, prompts, sampling=sampling, **shared)
    described = [
        {**row, **described_answers(answers, clustering, parse)} for row, answers in zip(described, found, strict=True)
    ]
    tables = [line for index, answers in enumerate(found) for line in answers.table(index)]
    return Written(described, texts.table(), tables)


def described_text(run: Run, texts: Generation, index: int, parse: AnswerParser | None = None) -> Row:
    """`text`, what it says where it is `parsed`, whether it `finished` by itself, `token_texts`, and what `predict` has
    of a completion, of the same tokens: log-probabilities and entropies."""
    assert texts.texts is not None
    return {
        "text": texts.texts[index],
        **({} if parse is None else {"parsed": parse(texts.texts[index])}),
        "finished": bool(texts.finished[index]),
        "token_texts": token_texts(run.processor, texts.tokens[index]),
        **run.config.task.family.describe(texts, index, ()),
    }


def described_answers(answers: Answers, clustering: Clustering, parse: AnswerParser | None = None) -> Row:
    """`answers`, each with its `text`, `cluster` (0 is the largest) and `log_prob` under the posterior predictive; the
    `agreement`, which is the share of the largest cluster; and the entropies of `Answers`.

    Where answers are parsed, clusters are those of what they say, each has what that is as `parsed`, and `num_unparsed`
    are those of which it cannot be told, which agree with no other.
    """
    named = list((clustering if parse is None else parse.clustering(clustering))(answers.texts))
    by_size = sorted(dict.fromkeys(named), key=lambda name: -named.count(name))
    clusters = [by_size.index(name) for name in named]
    found = [
        {"text": text, "cluster": cluster, "log_prob": value}
        for text, cluster, value in zip(answers.texts, clusters, answers.log_probs.tolist(), strict=True)
    ]
    parsed: Row = {}
    agreement = clusters.count(0) / len(clusters)
    if parse is not None:
        said = answers.parsed(parse)
        found = [{**answer, "parsed": value} for answer, value in zip(found, said, strict=True)]
        parsed = {"num_unparsed": said.count(None)}
        agreement = agreement if any(value is not None for value in said) else 0.0
    return {
        "answers": found,
        "agreement": agreement,
        **parsed,
        "predictive_entropy": answers.predictive_entropy,
        **answers.semantic_entropies(lambda texts: clusters),
    }


def token_values(row: Row, measure: TokenMeasure) -> list[float]:
    """What a written row says of each token, larger where the network was less sure: entropy or mutual information,
    nats, or by its probability p what is left, 1 - p."""
    if measure == "probability":
        return [-math.expm1(value) for value in row["token_log_probs"]]
    return list(row["total_entropy" if measure == "entropy" else "mutual_information"])


def visible(text: str) -> str:
    """Control characters but line breaks and tabs as signs for them, so that nothing obeys what a network wrote."""
    return text.translate(_SIGNS)


def clustering_of(same: SameAnswers) -> Clustering:
    """What says which answers are the same.

    Raises:
        BaseModelError: by meaning, and minilm is not installed.
    """
    if same == "words":
        return by_relation(lambda one, other: bare_words(one) == bare_words(other))
    from transformers import AutoModel, AutoTokenizer

    from bayes_lora.experiments.networks.base_models import resolve_base_model

    place = resolve_base_model("minilm")
    return by_embedding(AutoModel.from_pretrained(place), AutoTokenizer.from_pretrained(place))


def bare_words(text: str) -> str:
    """What two texts of the same words have in common: neither case, nor blanks and signs about it."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'")
