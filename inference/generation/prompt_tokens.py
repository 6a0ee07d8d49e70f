"""A prompt as tokens, in the way that a language model reads it where it is to be continued."""

from collections.abc import Sequence
from typing import Any

from bayes_lora.errors import DataError

Message = dict[str, str]


def prompt_tokens(tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
    """The tokens of a text, behind the one that begins a text where the tokenizer sets it; or of messages.

    A tokenizer that ends every text with a token of its own does not do so here, since the text goes on.

    Args:
        tokenizer: of the network.
        prompt: a text, or messages ({"role": ..., "content": ...}) that a message of the assistant is to follow.

    Raises:
        DataError: nothing to begin with: an empty prompt, and a tokenizer without a token that begins a text; messages,
            and a tokenizer without a chat template.
    """
    if isinstance(prompt, str):
        found = [*front_of(tokenizer), *text_tokens(tokenizer, prompt)]
        if not found and tokenizer.bos_token_id is not None:
            found = [tokenizer.bos_token_id]
    else:
        found = text_tokens(tokenizer, chat_prompt(tokenizer, prompt))
    if not found:
        raise DataError(
            "the prompt is empty, and this tokenizer has no token that begins a text, so that nothing says what the "
            "first token of the completion is to be. Write something there."
        )
    return found


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """Those of the text alone, nothing in front and nothing behind."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # the length is looked at later


def front_of(tokenizer: Any) -> list[int]:
    """What the tokenizer sets in front of every text: the token that begins one, or nothing."""
    begins = tokenizer("a")["input_ids"][:1]
    return list(begins) if tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id] else []


def chat_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Messages as the tokenizer's chat template writes them, up to where the assistant's next one begins.

    Raises:
        DataError: it has no chat template.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the row has messages, and this tokenizer has no chat template that says how to write them. Take a base "
            "model that was trained to chat, or write the rows as prompt and completion."
        )
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
