"""Rows of a prompt and a completion, whichever way a file says them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.rows.rows import Row

PROMPT, COMPLETION = "prompt", "completion"
# As Alpaca has them, and the instruction tasks made in its manner.
_INSTRUCTION = (
    "Below is an instruction that describes a task{with_input}. Write a response that appropriately completes "
)
_BODY = "the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"


def with_completions(rows: Sequence[Row], path: Path | str) -> list[Row]:
    """The rows, each with a prompt and a completion, and all else that it had.

    A row that has no `prompt` may have `messages`, whose last one the assistant says: that is the completion, and the
    prompt is the messages before it. Or `instruction`, perhaps `input`, and `output`, in the form of Alpaca; an
    `answer` beside them stays as it is.

    Raises:
        DataError: a row has none of these forms, or lacks its completion; names the row.
    """
    return [_with_completion(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]


def _with_completion(row: Row, where: str) -> Row:
    if PROMPT in row:
        if COMPLETION not in row:
            raise DataError(
                f"{where} has a prompt and no {COMPLETION!r}: there is nothing to learn or to score. Add it."
            )
        return row
    if "messages" in row:
        messages = row["messages"]
        fault = messages_fault(messages)
        if fault is None and (len(messages) < 2 or messages[-1]["role"] != "assistant"):
            fault = "the last of at least two messages must be the assistant's, which is the completion"
        if fault is not None:
            raise DataError(f"{where}, column 'messages': {fault}.")
        return {**row, PROMPT: messages[:-1], COMPLETION: messages[-1]["content"]}
    if "instruction" in row:
        if "output" not in row:
            raise DataError(f"{where} has an instruction and no 'output', which is the completion. Add it.")
        return {**row, PROMPT: _instructed(row, where), COMPLETION: row["output"]}
    raise DataError(
        f"{where} has neither {PROMPT!r} and {COMPLETION!r}, nor 'messages', nor 'instruction' and 'output'; it has "
        f"{', '.join(map(str, row)) or 'nothing'}. Name other columns with --text-columns and --label-column."
    )


def with_prompts(rows: Sequence[Row], path: Path | str, column: str = PROMPT) -> list[Row]:
    """The rows, each with a prompt that is to be continued, and all else that it had; completions may be missing.

    The forms are those of `with_completions`. Of messages, a last one of the assistant is the completion, so that it
    is not part of the prompt.

    Args:
        rows: of a file, or of elsewhere.
        path: where they are from, for errors.
        column: with prompts, where rows have it; else `prompt`.

    Raises:
        DataError: a row has no prompt, or one that is neither text nor messages; names the row.
    """
    return [_with_prompt(row, f"{path}, row {number}", column) for number, row in enumerate(rows, start=1)]


def _with_prompt(row: Row, where: str, column: str) -> Row:
    named = next((name for name in (column, PROMPT) if name in row), None)
    if named is not None:
        prompt = row[named]
        if not isinstance(prompt, str) and messages_fault(prompt) is not None:
            raise DataError(
                f'{where}, column {named!r}: it must be text, or a list of {{"role": ..., "content": ...}}.'
            )
        return {**row, PROMPT: prompt}
    if "messages" in row:
        messages = row["messages"]
        fault = messages_fault(messages)
        if fault is not None:
            raise DataError(f"{where}, column 'messages': {fault}.")
        if len(messages) > 1 and messages[-1]["role"] == "assistant":
            return {**row, PROMPT: messages[:-1], COMPLETION: messages[-1]["content"]}
        return {**row, PROMPT: messages}
    if "instruction" in row:
        known = {COMPLETION: row["output"]} if row.get("output") else {}
        return {**row, PROMPT: _instructed(row, where), **known}
    raise DataError(
        f"{where} has neither {column!r}, nor 'messages', nor 'instruction'; it has "
        f"{', '.join(map(str, row)) or 'nothing'}. Rename the column with the prompts."
    )


def _instructed(row: Row, where: str) -> str:
    instruction, given = row["instruction"], row.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(given, str):
        raise DataError(f"{where}: 'instruction' and 'input' must be text.")
    return instructed(instruction, given)


def instructed(instruction: str, given: str = "") -> str:
    """An instruction, perhaps with an input, in the form of Alpaca."""
    with_input = ", paired with an input that provides further context" if given else ""
    body = _BODY.format(instruction=instruction, input=f"### Input:\n{given}\n\n" if given else "")
    return _INSTRUCTION.format(with_input=with_input) + body


def messages_fault(messages: Any) -> str | None:
    """What messages must be, where these are none."""
    right = isinstance(messages, list) and messages and all(_is_message(message) for message in messages)
    return None if right else 'they must be a list of {"role": ..., "content": ...}, both text'


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(part), str) for part in ("role", "content"))
