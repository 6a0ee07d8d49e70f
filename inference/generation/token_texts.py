"""What each token of a text adds to it."""

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The part of the text that each token adds, special tokens by their names; together they are the text.

    A character that takes several tokens belongs to the last of them, and those before it add nothing.
    """
    found, before = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:end]), clean_up_tokenization_spaces=False)
        if text.endswith(_INCOMPLETE) and end < len(tokens):
            found.append("")
            continue
        found.append(text[len(before) :])
        before = text
    return found
