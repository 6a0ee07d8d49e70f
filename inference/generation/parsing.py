"""What an answer says, taken out of its text by a pattern."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bayes_lora.choices import AnswerForm
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.generation.semantic_entropy import Clustering

ANSWER_PATTERNS: Mapping[AnswerForm, str] = {
    "text": r"(?s)(.+)",
    "line": r"(\S.*)",
    "word": r"(\w+(?:['-]\w+)*)",
    # The last one: what reasons first comes to its result at the end.
    "number": r"(?s).*(?<![\w.,-])(-?\d[\d,]*(?:\.\d+)?)",
}
"""The whole text, its first line that is not blank, its first word, its last number."""


@dataclass(frozen=True)
class AnswerParser:
    r"""Takes from a text what it says: the first group of the first match of a regular expression.

    Of a pattern without groups it is the whole match. Blanks about it are dropped. Where nothing matches, or nothing is
    left, the text says nothing that can be told: None.

    Args:
        pattern: as Python's `re` has it; `(?i)` at its start ignores case, `(?s)` lets a point match line breaks.

    Raises:
        ConfigurationError: it is no regular expression.

    Example:
        >>> AnswerParser(r"answer is (\w+)")("I think the answer is Oslo.")
        'Oslo'
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            place = "" if error.pos is None else f", at {self.pattern[error.pos :]!r}"
            raise ConfigurationError(
                f"the answer pattern {self.pattern!r} is no regular expression: {error.msg}{place}. Write one as "
                "Python's re has them, such as 'answer is (.+)', with a backslash before signs that mean themselves."
            ) from error

    @classmethod
    def of(cls, form: AnswerForm) -> "AnswerParser":
        """One of those in `ANSWER_PATTERNS`."""
        return cls(ANSWER_PATTERNS[form])

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def __call__(self, text: str) -> str | None:
        found = self._compiled.search(text)
        said = None if found is None else found[1 if self._compiled.groups else 0]
        return (said or "").strip() or None

    def clustering(self, same: Clustering) -> Clustering:
        """Clusters by what answers say, among which `same` finds those that say the same; an answer of which nothing
        can be told is in a cluster of its own."""

        def clusters(texts: Sequence[str]) -> list[Hashable]:
            said = [self(text) for text in texts]
            told = [value for value in said if value is not None]
            named = iter(same(told) if told else ())
            return [(index,) if value is None else next(named) for index, value in enumerate(said)]

        return clusters
