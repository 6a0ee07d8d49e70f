"""Rows of a question and its options, whichever way a file says them."""

import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bayes_lora.errors import DataError
from bayes_lora.experiments.rows.rows import Row

QUESTION, OPTIONS, ANSWER = "question", "options", "answer"
LETTERS = string.ascii_uppercase
# LLM-Adapters' instructions: "Please choose the correct answer to the question: ... Answer1: ... Answer format: ...".
_ANSWER_FORMAT = re.compile(r"\s*Answer format: (\w+(?:/\w+)+)\s*$")
_REQUEST = re.compile(r"^Please [^:]*:\s*")


class _Choice(NamedTuple):
    """What a row says, and which of its columns say it.

    Attributes:
        question: text.
        options: texts.
        keys: names of the options, by which an answer may go; none where they have no names.
        answer: as it is written, or None.
        said_by: the columns.
    """

    question: Any
    options: Any
    keys: tuple[str, ...]
    answer: Any
    said_by: tuple[str, ...]


def with_options(rows: Sequence[Row], path: Path | str) -> list[Row]:
    """The rows, each with a question, its options, and where one is known, the number of the answer among them.

    Forms, by the columns that a row has:

        question, options (or choices), answer (or answerKey, label)    options are a list of texts, in a CSV file
            texts with | between them, or {"text": texts, "label": their names}
        question, A, B, ..., answer                                     a column for each option
        question, answer                                                a yes-or-no question, of answer true or false
        instruction, answer                                             as in LLM-Adapters, with "Answer format: a/b"
        goal, sol1, sol2, label;  sentence, option1, option2, answer;  context, question, answerA, ..., label;
        question_stem, choices, answerKey                               as PIQA, WinoGrande, SIQA and OpenBookQA have it

    Raises:
        DataError: a row has none of these forms, or `answer_of` refuses its answer; names the row.
    """
    return [_with_options(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]


def options_of(written: Any) -> list[str]:
    """The options that a row has, those of a CSV file by the | between them.

    Raises:
        DataError: they are none.
    """
    options = [part.strip() for part in written.split("|")] if isinstance(written, str) else written
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise DataError("options must be a list of texts, none of them empty, or texts with | between them")
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"a question has 2 to {len(LETTERS)} options, not {len(options)}")
    return options


def answer_of(written: Any, options: Sequence[str], keys: Sequence[str] = ()) -> int:
    """The number of an answer among the options, from 0: where it is none, the place of its name, else of its text, of
    its letter, or of the number that it is written as.

    Raises:
        DataError: it is none of the options, or two of them.
    """
    if isinstance(written, bool) or not isinstance(written, int | str) or written == "":
        raise DataError("the row has no answer: it must be the text, the letter or the number of one of its options.")
    if isinstance(written, str):
        said = written.strip()
        for names in (keys, options):
            if said in names:
                if list(names).count(said) > 1:
                    raise DataError(f"the answer {said!r} is the text of two of the options. Give its letter.")
                return list(names).index(said)
        if len(said) == 1 and said.upper() in LETTERS[: len(options)]:
            return LETTERS.index(said.upper())
        if not re.fullmatch(r"[0-9]+", said):
            raise DataError(f"the answer {said!r} is none of the options ({', '.join(options)}). Correct one of them.")
        written = int(said)
    number = int(written)
    if number not in range(len(options)):
        raise DataError(f"the answer is number {number}, and options count from 0 to {len(options) - 1}. Correct it.")
    return number


def _with_options(row: Row, where: str) -> Row:
    form = next((form for columns, form in _FORMS if all(column in row for column in columns)), None)
    if form is None:
        raise DataError(
            f"{where} has {', '.join(map(str, row)) or 'nothing'}: no question with options. Name its columns "
            f"{QUESTION}, {OPTIONS} and {ANSWER}."
        )
    try:
        choice = form(row)
        if choice.keys and choice.answer is not None:
            choice = choice._replace(answer=answer_of(choice.answer, options_of(choice.options), choice.keys))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    found = {name: value for name, value in row.items() if name not in choice.said_by}
    found |= {QUESTION: choice.question, OPTIONS: choice.options}
    return found if choice.answer is None else {**found, ANSWER: choice.answer}


def _plain(row: Row, column: str = OPTIONS, question: str = QUESTION) -> _Choice:
    written = row[column]
    answer = next((name for name in (ANSWER, "answerKey", "label") if name in row), ANSWER)
    keys: tuple[str, ...] = ()
    if isinstance(written, dict):
        if not isinstance(written.get("text"), list) or not isinstance(written.get("label"), list):
            raise DataError(f'column {column!r} must be a list of texts, or {{"text": [...], "label": [...]}}.')
        keys, written = tuple(map(str, written["label"])), written["text"]
        if len(keys) != len(written):
            raise DataError(f"column {column!r} has {len(written)} texts and {len(keys)} labels. Correct it.")
    return _Choice(row[question], written, keys, row.get(answer), (question, column, answer))


def _of_columns(question: Callable[[Row], Any], columns: Sequence[str], answer: str, *, first: int = 1) -> Any:
    """A form with a column for each option, which an answer names by a number."""

    def form(row: Row) -> _Choice:
        keys = tuple(str(first + index) for index in range(len(columns)))
        written = row.get(answer)
        said = str(written) if isinstance(written, int) and not isinstance(written, bool) else written
        used = ("goal", "sentence", "context", *columns, answer)
        return _Choice(question(row), [row[column] for column in columns], keys, said, used)

    return form


def _by_letters(row: Row) -> _Choice:
    columns = [
        letter for letter in LETTERS if row.get(letter)
    ]  # in a CSV file rows with fewer options leave some empty
    return _Choice(row[QUESTION], [row[letter] for letter in columns], tuple(columns), row.get(ANSWER), (*LETTERS,))


def _yes_or_no(row: Row) -> _Choice:
    answer = row[ANSWER]
    said = str(answer).lower()
    if said not in ("true", "false"):
        raise DataError(
            f"the question has no {OPTIONS}, and the answer {answer!r} is neither true nor false. Add them."
        )
    return _Choice(row[QUESTION], ["true", "false"], ("true", "false"), said, ())


def _instruction(row: Row) -> _Choice:
    text = row["instruction"]
    ends = _ANSWER_FORMAT.search(text) if isinstance(text, str) else None
    if ends is None:
        raise DataError("the instruction does not end with 'Answer format: ' and the names of its options.")
    keys, body = tuple(ends[1].split("/")), _REQUEST.sub("", text[: ends.start()])
    said_by = ("instruction", "input", "output", ANSWER)
    if keys == ("true", "false"):
        return _Choice(body.strip(), list(keys), keys, row.get(ANSWER), said_by)
    places, start = [], 0
    for key in keys:
        mark = f"{key.capitalize()}:"
        place = body.find(mark, start)
        if place < 0:
            raise DataError(f"the instruction has no {mark!r}, which its answer format names.")
        start = place + len(mark)
        places.append((place, start))
    ends_at = [place for place, _ in places[1:]] + [len(body)]
    options = [body[begin:end].strip() for (_, begin), end in zip(places, ends_at, strict=True)]
    return _Choice(body[: places[0][0]].strip(), options, keys, row.get(ANSWER), said_by)


_FORMS: tuple[tuple[tuple[str, ...], Callable[[Row], _Choice]], ...] = (
    ((QUESTION, OPTIONS), _plain),
    ((QUESTION, "choices"), lambda row: _plain(row, "choices")),
    (("question_stem", "choices"), lambda row: _plain(row, "choices", "question_stem")),
    ((QUESTION, "A", "B"), _by_letters),
    (("instruction",), _instruction),
    (("goal", "sol1", "sol2"), _of_columns(lambda row: row["goal"], ("sol1", "sol2"), "label", first=0)),
    (("sentence", "option1", "option2"), _of_columns(lambda row: row["sentence"], ("option1", "option2"), ANSWER)),
    (
        ("context", QUESTION, "answerA", "answerB", "answerC"),
        _of_columns(lambda row: f"{row['context']} {row[QUESTION]}", ("answerA", "answerB", "answerC"), "label"),
    ),
    ((QUESTION, ANSWER), _yes_or_no),
)
