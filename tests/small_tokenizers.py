"""Small tokenizers that are made, not loaded: the two kinds of them that language models have."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "the old house is very old",
    "What is it? It is red.",
    "Answer: yes",
    "Answer: no",
    *["foobar"] * 2,
    "foo bar",
] * 20
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
END = "<end>"


def byte_pairs(*, begins: str | None = None, chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """Byte pairs as in GPT-2, merged over word and punctuation alike, so that a boundary may lie inside a token.

    Args:
        begins: a token that is set in front of every text.
        chat: the chat template.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [END, *([] if begins is None else [begins])]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if begins is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begins} $A", special_tokens=[(begins, special.index(begins))]
        )
    return _wrapped(tokenizer, begins, chat)


def sentence_pieces() -> PreTrainedTokenizerFast:
    """Pieces as in LLaMA: a text that begins has a blank in front of it, which is a part of its first piece."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<s>", END, "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "\n"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return _wrapped(tokenizer, "<s>", None)


def _wrapped(tokenizer: Tokenizer, begins: str | None, chat: str | None) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begins, eos_token=END)
    if chat is not None:
        wrapped.chat_template = chat
    return wrapped
