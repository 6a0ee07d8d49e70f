"""How a command is told what of a text is its answer."""

from bayes_lora.choices import AnswerForm
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import AnswerParser


def answer_parser(form: AnswerForm | None, pattern: str | None) -> AnswerParser | None:
    """What --parse or --answer-pattern says; None where neither is given.

    Raises:
        ConfigurationError: both are, or the pattern is no regular expression.
    """
    if form is not None and pattern is not None:
        raise ConfigurationError(
            "--parse and --answer-pattern both say what of a text is its answer. Give one of them."
        )
    if pattern is not None:
        return AnswerParser(pattern)
    return None if form is None else AnswerParser.of(form)
