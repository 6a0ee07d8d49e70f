"""A prompt and its completion as tokens, with the boundary where a text that is continued has it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bayes_lora.errors import DataError

Message = dict[str, str]


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
    if isinstance(prompt, str):
        before = _ids(tokenizer, prompt)
        behind = _continuing(tokenizer, prompt, before, completion)
        front, end = front_of(tokenizer), tokenizer.eos_token_id
        before = [*front, *before]
        if not before and tokenizer.bos_token_id is not None:
            before = [tokenizer.bos_token_id]
        end = [] if end is None or behind[-1:] == [end] else [end]
    else:
        text, whole = _chat(tokenizer, prompt, completion)
        before, end = _ids(tokenizer, text), []
        behind = _continuing(tokenizer, text, before, whole)
    if not before:
        raise DataError(
            "the prompt is empty, and this tokenizer has no token that begins a text, so that nothing says what the "
            "first token of the completion is to be. Write something there."
        )
    if not behind:
        raise DataError(f"this tokenizer makes no token of the completion {completion!r}. Leave the row out.")
    return CompletionTokens(before, [*behind, *end])


def front_of(tokenizer: Any) -> list[int]:
    """What the tokenizer sets in front of every text: the token that begins one, or nothing."""
    begins = tokenizer("a")["input_ids"][:1]
    return list(begins) if tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id] else []


def _continuing(tokenizer: Any, prompt: str, before: list[int], completion: str) -> list[int]:
    together = _ids(tokenizer, prompt + completion)
    if together[: len(before)] == before:
        return together[len(before) :]
    alone = _ids(tokenizer, completion)
    # Of a text that begins, some tokenizers say that a blank is in front of it; behind a line break they do not.
    line = _ids(tokenizer, "\n")
    behind = _ids(tokenizer, "\n" + completion)
    candidates = [alone, behind[len(line) :]] if behind[: len(line)] == line else [alone]
    expected = _text(tokenizer, before) + completion
    return next((ids for ids in candidates if _text(tokenizer, [*before, *ids]) == expected), alone)


def _chat(tokenizer: Any, messages: Sequence[Message], completion: str) -> tuple[str, str]:
    """The messages as text, and what follows when the assistant says `completion`."""
    if not tokenizer.chat_template:
        raise DataError(
            "the row has messages, and this tokenizer has no chat template that says how to write them. Take a base "
            "model that was trained to chat, or write the rows as prompt and completion."
        )
    said = [*messages, {"role": "assistant", "content": completion}]
    before = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(said, tokenize=False)
    if not whole.startswith(before):
        raise DataError(
            "the tokenizer's chat template does not continue its own prompt: with the answer it writes the messages "
            "before it in another way. Write the rows as prompt and completion."
        )
    return before, whole[len(before) :]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # the length is looked at later


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
