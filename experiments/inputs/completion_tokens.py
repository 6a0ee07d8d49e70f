"""A prompt and its completion as tokens, with the boundary where a text that is continued has it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bayes_lora.errors import DataError
from bayes_lora.inference.generation.prompt_tokens import Message, chat_prompt, prompt_tokens, text_tokens


class CompletionTokens(NamedTuple):
    """Tokens of one row."""

    prompt: list[int]
    completion: list[int]

    def cut(self, limit: int, keeps: int) -> "CompletionTokens":
        """At most `limit` tokens: the prompt loses what it begins with, behind its first `keeps` tokens."""
        room = limit - len(self.completion)
        if len(self.prompt) <= room:
            return self
        kept = min(keeps, room - 1)
        return self._replace(prompt=[*self.prompt[:kept], *self.prompt[len(self.prompt) - room + kept :]])


def completion_tokens(tokenizer: Any, prompt: str | Sequence[Message], completion: str) -> CompletionTokens:
    """The tokens of a prompt, as they are where nothing follows it, and those of the completion that continue it.

    A network that is to continue a prompt reads the prompt's own tokens. So these stay what they are also where the
    tokenizer, given both texts at once, would merge the last of one with the first of the other. Messages are written
    by the tokenizer's chat template; any other completion ends with the tokenizer's end of sequence, where it has one.

    Args:
        tokenizer: of the network.
        prompt: a text, or messages ({"role": ..., "content": ...}) that a message of the assistant follows.
        completion: not empty.

    Raises:
        DataError: a prompt without a token and a tokenizer without one for the beginning of a text; a completion
            without a token; messages, and a tokenizer without a chat template, or one that does not continue them.
    """
    before, end = prompt_tokens(tokenizer, prompt), tokenizer.eos_token_id
    text, whole = (prompt, completion) if isinstance(prompt, str) else _chat(tokenizer, prompt, completion)
    behind = _continuing(tokenizer, text, whole)
    if not behind:
        raise DataError(f"this tokenizer makes no token of the completion {completion!r}. Leave the row out.")
    if isinstance(prompt, str) and end is not None and behind[-1] != end:
        behind = [*behind, end]
    return CompletionTokens(before, behind)


def continuations(tokenizer: Any, prompt: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens of a prompt as they are where nothing follows it, and those of each text that may continue it.

    Which token " A" is, or whether the blank is one of its own, is how the tokenizer goes on from this prompt.

    Raises:
        DataError: a prompt or a text without a token.
    """
    known, found = text_tokens(tokenizer, prompt), [_continuing(tokenizer, prompt, text) for text in texts]
    if not known or not all(found):
        text = prompt if not known else texts[[bool(ids) for ids in found].index(False)]
        raise DataError(f"this tokenizer makes no token of {text!r}. Write something else there.")
    return prompt_tokens(tokenizer, prompt), found


def _continuing(tokenizer: Any, prompt: str, completion: str) -> list[int]:
    before, together = text_tokens(tokenizer, prompt), text_tokens(tokenizer, prompt + completion)
    if together[: len(before)] == before:
        return together[len(before) :]
    alone = text_tokens(tokenizer, completion)
    # Of a text that begins, some tokenizers say that a blank is in front of it; behind a line break they do not.
    line = text_tokens(tokenizer, "\n")
    behind = text_tokens(tokenizer, "\n" + completion)
    candidates = [alone, behind[len(line) :]] if behind[: len(line)] == line else [alone]
    expected = _text(tokenizer, before) + completion
    return next((ids for ids in candidates if _text(tokenizer, [*before, *ids]) == expected), alone)


def _chat(tokenizer: Any, messages: Sequence[Message], completion: str) -> tuple[str, str]:
    """The messages as text, and what follows when the assistant says `completion`."""
    said = [*messages, {"role": "assistant", "content": completion}]
    before = chat_prompt(tokenizer, messages)
    whole = tokenizer.apply_chat_template(said, tokenize=False)
    if not whole.startswith(before):
        raise DataError(
            "the tokenizer's chat template does not continue its own prompt: with the answer it writes the messages "
            "before it in another way. Write the rows as prompt and completion."
        )
    return before, whole[len(before) :]


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
