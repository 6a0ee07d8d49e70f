"""What each token adds to a text."""

import pytest

from bayes_lora.inference.generation.token_texts import token_texts
from tests.small_tokenizers import byte_pairs


@pytest.mark.parametrize("text", ["the old house", "Bogotá, São Paulo: 東京 🙂", " a  b\n", "�", ""])
def test_together_they_are_the_text(text: str) -> None:
    tokenizer = byte_pairs()
    tokens = tokenizer(text)["input_ids"]
    found = token_texts(tokenizer, tokens)
    assert len(found) == len(tokens)
    assert "".join(found) == text


def test_a_character_of_several_tokens_is_with_its_last() -> None:
    tokenizer = byte_pairs()
    tokens = tokenizer("東<end>")["input_ids"]
    assert token_texts(tokenizer, tokens) == ["", "", "東", "<end>"]
    assert token_texts(tokenizer, tokens[:2]) == ["", "�"]
