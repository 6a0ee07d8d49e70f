"""Where a completion begins: behind the prompt's own tokens, also where a tokenizer would merge over the boundary."""

import pytest
from transformers import PreTrainedTokenizerFast

from bayes_lora.errors import DataError
from bayes_lora.experiments.inputs.completion_tokens import CompletionTokens, completion_tokens
from tests.small_tokenizers import CHAT, END, byte_pairs, sentence_pieces

TOKENIZERS = {
    "byte pairs": byte_pairs(),
    "byte pairs that begin": byte_pairs(begins="<begin>"),
    "sentence pieces": sentence_pieces(),
}
EACH = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
# Prompts and completions, some of which are one token together.
PAIRS = [("Answer:", " yes"), ("Answer: ", "no"), ("foo", "bar"), ("What is it?", " It is red."), ("the old ho", "use")]


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


@EACH
@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_the_prompt_has_its_own_tokens_and_the_completion_its_own_text(
    tokenizer: PreTrainedTokenizerFast, prompt: str, completion: str
) -> None:
    found = completion_tokens(tokenizer, prompt, completion)
    assert found.prompt == tokenizer(prompt)["input_ids"]  # as a network reads it that is to continue it
    assert found.completion[-1] == tokenizer.eos_token_id
    text = str(tokenizer.decode([*found.prompt, *found.completion], skip_special_tokens=True))
    assert text == prompt + completion
    before = str(tokenizer.decode(found.prompt, skip_special_tokens=True))
    assert text.removeprefix(before).strip() == completion.strip()


def test_tokens_do_merge_over_these_boundaries() -> None:
    """The control: tokens of both texts at once, cut where the prompt's number of tokens ends, would be others."""
    for tokenizer in TOKENIZERS.values():
        merged = [(p, c) for p, c in PAIRS if ids(tokenizer, p + c)[: len(ids(tokenizer, p))] != ids(tokenizer, p)]
        assert ("foo", "bar") in merged
    pieces = TOKENIZERS["sentence pieces"]
    assert pieces.decode(ids(pieces, "foo") + ids(pieces, "bar")) == "foo bar"  # as if the completion began a text


def test_an_empty_prompt() -> None:
    for name in ("byte pairs that begin", "sentence pieces"):
        tokenizer = TOKENIZERS[name]
        assert completion_tokens(tokenizer, "", "yes").prompt == [tokenizer.bos_token_id]
    with pytest.raises(DataError, match="the prompt is empty, and this tokenizer has no token that begins a text"):
        completion_tokens(TOKENIZERS["byte pairs"], "", "yes")


def test_a_completion_ends_once() -> None:
    tokenizer = TOKENIZERS["byte pairs"]
    end = tokenizer.eos_token_id
    assert completion_tokens(tokenizer, "Answer:", f" yes{END}") == completion_tokens(tokenizer, "Answer:", " yes")
    with pytest.raises(DataError, match="makes no token of the completion ''"):
        completion_tokens(tokenizer, "Answer:", "")
    endless = byte_pairs()
    endless.eos_token = None
    assert end not in completion_tokens(endless, "Answer:", " yes").completion


def test_messages_are_written_by_the_chat_template() -> None:
    tokenizer = TOKENIZERS["byte pairs"]
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Is it?"}]
    found = completion_tokens(tokenizer, messages, "It is.")
    assert tokenizer.decode(found.prompt) == "<system>Be short.<end>\n<user>Is it?<end>\n<assistant>"
    assert tokenizer.decode(found.completion) == "It is.<end>\n"
    begins = completion_tokens(TOKENIZERS["byte pairs that begin"], messages, "It is.")
    assert begins.prompt[0] != TOKENIZERS["byte pairs that begin"].bos_token_id  # the template says all there is
    with pytest.raises(DataError, match="this tokenizer has no chat template"):
        completion_tokens(TOKENIZERS["sentence pieces"], messages, "It is.")
    rewriting = byte_pairs(chat="{{ messages | length }}" + CHAT)
    with pytest.raises(DataError, match="chat template does not continue its own prompt"):
        completion_tokens(rewriting, messages, "It is.")


def test_a_long_prompt_loses_its_beginning() -> None:
    row = CompletionTokens([0, 1, 2, 3, 4], [5, 6])
    assert row.cut(7, 1) is row
    assert row.cut(5, 0) == CompletionTokens([2, 3, 4], [5, 6])
    assert row.cut(5, 1) == CompletionTokens([0, 3, 4], [5, 6])
    assert row.cut(3, 1) == CompletionTokens([4], [5, 6])
