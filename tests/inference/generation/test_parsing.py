"""What answers say, by patterns."""

import pytest

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import AnswerParser, by_relation
from bayes_lora.inference.generation.parsing import ANSWER_PATTERNS


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("text", " Oslo,\nI think. ", "Oslo,\nI think."),
        ("text", " \n", None),
        ("line", "\n  Oslo, I think. \nOr Bergen.", "Oslo, I think."),
        ("line", "\n\n", None),
        ("word", " 'Port-au-Prince', N'Djamena", "Port-au-Prince"),
        ("word", "...", None),
        ("number", "6 times 7 is 42.", "42"),
        ("number", "From 3 to -1,200.5, that is.", "-1,200.5"),
        ("number", "x2 is none, nor is v1.2", None),
        ("number", "none", None),
    ],
)
def test_the_forms(form: str, text: str, said: str | None) -> None:
    assert AnswerParser.of(form)(text) == said  # type: ignore[arg-type]


def test_ones_own_pattern() -> None:
    parse = AnswerParser(r"(?i)answer(?: is)?:? (\w+)|^(\w+)$")
    assert parse("So the ANSWER is Oslo.") == "Oslo"
    assert parse("Oslo") is None  # the second group's
    assert AnswerParser("[A-D]")("(B) ice") == "B"
    assert AnswerParser("a( *)b")("a  b") is None
    for pattern, fault in (("(a", "missing \\), unterminated subpattern, at '\\(a'"), ("*", "nothing to repeat")):
        with pytest.raises(ConfigurationError, match=f"is no regular expression: {fault}"):
            AnswerParser(pattern)
    for known in ANSWER_PATTERNS.values():
        assert AnswerParser(known)("1") == "1"


def test_what_cannot_be_told_is_the_same_as_nothing() -> None:
    same = by_relation(lambda one, other: one.lower() == other.lower())
    clusters = AnswerParser(r"is (\w+)").clustering(same)(["It is A", "no", "is a", "no", "is b"])
    assert clusters[0] == clusters[2]
    assert len(set(clusters)) == 4
    assert len(set(AnswerParser("x").clustering(same)(["a", "a"]))) == 2
