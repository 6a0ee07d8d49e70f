"""Lists of words as tokens, with a label for each word."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from bayes_lora.errors import DataError
from bayes_lora.experiments.inputs.text import Text
from bayes_lora.labels import TO_PREDICT, UNLABELLED


class Words(Text):
    """One text that is a list of words; in a CSV file it is text, with blanks between words.

    A word of several pieces has its label at the first; one of which the tokenizer makes nothing is the unknown word to
    it; of a row that is cut, the words left over have none.
    """

    network = "a token classifier"
    # Else the words of a row run into each other under RoBERTa's and GPT-2's tokenizers, whose blanks are letters.
    tokenizer_options: ClassVar[Mapping[str, Any]] = {"add_prefix_space": True}

    def fault(self, value: Any) -> str | None:
        """Words."""
        words = split(value)
        right = isinstance(words, list) and words and all(isinstance(word, str) for word in words)
        return None if right else "it must be a list of words, or words with blanks between them"

    def shown(self, value: Any) -> str:
        """The words with blanks between them."""
        return " ".join(split(value))

    def tokens(
        self, tokenizer: Any, texts: Sequence[Sequence[Any]], labels: Sequence[Any] | None, limit: int
    ) -> dict[str, Any]:
        """Tokens of each row, with a label for every one: the word's at its first piece, -1 there where it is not
        known, and -100 elsewhere.

        Raises:
            DataError: a text is a pair, or has another number of labels than of words, or a word of which the tokenizer
                makes nothing and no unknown word.
        """
        if len(texts) != 1:
            raise DataError("token classification reads one text, a list of words. Name one text column.")
        words = _with_pieces(tokenizer, [split(text) for text in texts[0]])
        columns = tokenizer(words, is_split_into_words=True, truncation=True, max_length=limit, padding=False)
        found = []
        for row, of_row in enumerate(words):
            known = [TO_PREDICT] * len(of_row) if labels is None else labels[row]
            if len(known) != len(of_row):
                raise DataError(
                    f"row {row + 1} has {len(of_row)} words and {len(known)} labels. Give one for each word."
                )
            places, before = [], None
            for word in columns.word_ids(row):
                places.append(UNLABELLED if word is None or word == before else known[word])
                before = word
            found.append(places)
        return {**columns, "labels": found}

    def collate(self, processor: Any) -> Any:
        """Pads labels as tokens."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(processor)


def split(text: Any) -> Any:
    """The words of a text; anything else as it is."""
    return text.split() if isinstance(text, str) else text


def _with_pieces(tokenizer: Any, rows: list[list[str]]) -> list[list[str]]:
    """The rows' words, where one of which the tokenizer makes no token is its unknown word.

    Else the words after it would have the predictions of those before.
    """
    distinct = sorted({word for row in rows for word in row})
    tokens = tokenizer([[word] for word in distinct], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    silent = {word for word, pieces in zip(distinct, tokens, strict=True) if not len(pieces)}
    if silent and tokenizer.unk_token is None:
        number, row = next((number, row) for number, row in enumerate(rows, start=1) if silent & set(row))
        word = next(word for word in row if word in silent)
        raise DataError(
            f"row {number} has the word {word!r}, of which this tokenizer makes no token, and "
            "it has no unknown word to put there. Leave the word out."
        )
    return [[tokenizer.unk_token if word in silent else word for word in row] for row in rows]
