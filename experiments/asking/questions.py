"""Questions whose answers are known, in whatever form a file has them, and whether a text says one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.rows.completion_rows import COMPLETION, PROMPT, with_prompts
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.runs.writing import bare_words
from bayes_lora.inference import AnswerParser

ANSWER = "answer"


@dataclass(frozen=True)
class Question:
    """A prompt, and the texts that answer it.

    Attributes:
        prompt: text, or messages.
        answers: each of them is right; none where there is no answer.
    """

    prompt: Any
    answers: tuple[str, ...]

    def is_right(self, text: str, parse: AnswerParser | None = None) -> bool:
        """Whether what a text says is one of the answers, whatever case, blanks and signs about it they have.

        An answer from which nothing can be parsed, such as "B" for "the answer is (.+)", is what is to be said itself.
        """
        said = text if parse is None else parse(text)
        if said is None or not bare_words(said):
            return False
        known = self.answers if parse is None else [parse(answer) or answer for answer in self.answers]
        return bare_words(said) in map(bare_words, known)


def read_questions(rows: Sequence[Row], path: Path | str) -> list[Question]:
    """The questions of a file: prompts as `with_prompts` has them, and what answers them.

    That is `answer`, a text or a list of texts of which each is right; where a row has none, its completion (the last
    message of the assistant, or `output`). A question without either, or with an empty one, is one that has no answer.

    Raises:
        DataError: see `with_prompts`; an answer that is no text; no row.
    """
    if not rows:
        raise DataError(f"{path} has no rows, so there is nothing to ask. Give questions.")
    return [
        Question(row[PROMPT], _answers(row, f"{path}, row {number}"))
        for number, row in enumerate(with_prompts(rows, path), start=1)
    ]


def _answers(row: Row, where: str) -> tuple[str, ...]:
    written = row[ANSWER] if row.get(ANSWER) is not None else row.get(COMPLETION)
    each = written if isinstance(written, list) else [] if written is None else [written]
    if not all(isinstance(answer, str) for answer in each):
        raise DataError(f"{where}: the answer {written!r} must be a text, or a list of texts of which each is right.")
    return tuple(answer for answer in each if answer.strip())
