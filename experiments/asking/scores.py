"""What a language model's answers are told by: scores that are larger where it is less sure."""

from collections.abc import Mapping

from bayes_lora.experiments.rows.rows import Row
from bayes_lora.inference import Answers, Generation

BASELINE = "total_entropy_per_token"
"""The entropy that everybody has: of the tokens of one text, their mean."""

OF_TEXTS: Mapping[str, str] = {
    BASELINE: "entropy, mean of tokens",
    "total_entropy_max": "entropy, largest of tokens",
    "nll": "-log-probability",
    "nll_per_token": "-log-probability by token",
    "joint_nll": "-log-probability, draws averaged over the text",
    "joint_nll_per_token": "the same by token",
    "aleatoric_entropy_per_token": "aleatoric entropy, mean of tokens",
    "aleatoric_entropy_max": "aleatoric entropy, largest of tokens",
    "mutual_information_per_token": "mutual information, mean of tokens",
    "mutual_information_max": "mutual information, largest of tokens",
}
"""Scores of the text itself, see `Generation.scores`, by what tables call them."""

OF_ANSWERS: Mapping[str, str] = {
    "predictive_entropy": "predictive entropy of answers",
    "answer_mutual_information": "mutual information of answers",
    "disagreement": "disagreement of answers",
    "semantic_entropy": "semantic entropy",
    "discrete_semantic_entropy": "semantic entropy, by counts",
}
"""Scores of independent answers to the same question."""

OF_DRAWS = frozenset(name for name in (*OF_TEXTS, *OF_ANSWERS) if "joint" in name or "aleatoric" in name) | {
    name for name in (*OF_TEXTS, *OF_ANSWERS) if "mutual_information" in name
}
"""Those that say nothing of one network alone: it cannot disagree with itself."""

TITLES = {**OF_TEXTS, **OF_ANSWERS}


def scores_of_text(texts: Generation, index: int) -> dict[str, float]:
    """`OF_TEXTS` of one text."""
    return {name: float(values[index]) for name, values in texts.scores().items() if name in OF_TEXTS}


def scores_of_answers(answers: Answers, described: Row) -> dict[str, float]:
    """`OF_ANSWERS` of the answers to one question, of which `described_answers` says the rest."""
    return {
        "predictive_entropy": answers.predictive_entropy,
        "answer_mutual_information": answers.mutual_information,
        "disagreement": 1 - described["agreement"],
        **{name: described[name] for name in ("semantic_entropy", "discrete_semantic_entropy")},
    }
