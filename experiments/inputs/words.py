"""Lists of words as tokens, with a label for each word."""

from collections.abc import Sequence
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.inputs.text import Text
from bayes_lora.labels import TO_PREDICT, UNLABELLED


class Words(Text):
    """One text that is a list of words; in a CSV file it is text, with blanks between words.

    A word of several pieces has its label at the first; of a row that is cut, the words left over have none.
    """

    network = "a token classifier"

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
            DataError: a text is a pair, or has another number of labels than of words.
        """
        if len(texts) != 1:
            raise DataError("token classification reads one text, a list of words. Name one text column.")
        words = [split(text) for text in texts[0]]
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
