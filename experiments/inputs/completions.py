"""Prompts and the completions after them, as tokens."""

import warnings
from collections.abc import Sequence
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.inputs.completion_tokens import completion_tokens
from bayes_lora.experiments.inputs.text import Text
from bayes_lora.experiments.rows.completion_rows import messages_fault
from bayes_lora.inference.generation.prompt_tokens import front_of
from bayes_lora.labels import UNLABELLED


class Completions(Text):
    """A prompt, or the messages before an answer, and the row's label behind it: the network reads both.

    A row that is too long loses the beginning of its prompt, and a warning says how many did; a completion is never
    cut.
    """

    network = "a causal language model"
    suggested = ("smollm2", "openai-community/gpt2")
    max_length = 512

    def fault(self, value: Any) -> str | None:
        """Text, or messages."""
        if isinstance(value, str) or messages_fault(value) is None:
            return None
        return 'it must be text, or a list of {"role": ..., "content": ...}'

    def shown(self, value: Any) -> str:
        """The text, or what the last message says."""
        return value if isinstance(value, str) else str(value[-1]["content"])

    def tokens(
        self, tokenizer: Any, texts: Sequence[Sequence[Any]], labels: Sequence[Any] | None, limit: int
    ) -> dict[str, Any]:
        """Tokens of prompt and completion, and those of the completion as labels.

        Raises:
            DataError: a text is a pair, a completion alone is too long, or see `completion_tokens`; names the row.
        """
        if len(texts) != 1 or labels is None:
            raise DataError("a language model reads one prompt, and the completion after it. Name one text column.")
        keeps, cut = len(front_of(tokenizer)), 0
        columns: dict[str, Any] = {"input_ids": [], "attention_mask": [], "labels": []}
        for number, (prompt, completion) in enumerate(zip(texts[0], labels, strict=True), start=1):
            try:
                whole = completion_tokens(tokenizer, prompt, completion)
            except DataError as error:
                raise DataError(f"row {number}: {error}") from error
            if len(whole.completion) >= limit:
                raise DataError(
                    f"row {number}: its completion has {len(whole.completion)} tokens, and a row has room for {limit}, "
                    "of which one at least is the prompt's. Leave it out, or give a larger --max-length, as far as the "
                    "base model reads."
                )
            row = whole.cut(limit, keeps)
            cut += row is not whole
            ids = [*row.prompt, *row.completion]
            columns["input_ids"].append(ids)
            columns["attention_mask"].append([1] * len(ids))
            columns["labels"].append([UNLABELLED] * len(row.prompt) + row.completion)
        if cut:
            warnings.warn(
                f"{cut} of {len(labels)} rows have more than {limit} tokens: the beginning of their prompts is left "
                "out. --max-length says how many a row may have.",
                stacklevel=2,
            )
        return columns

    def collate(self, processor: Any) -> Any:
        """Labels are padded as tokens are, by place: the padding token itself may be a label, where it ends texts."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(processor)
