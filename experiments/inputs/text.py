"""Texts as tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from bayes_lora.errors import BaseModelError, ConfigurationError, DataError
from bayes_lora.experiments.inputs.inputs import Encoded, Inputs, ReadableTask
from bayes_lora.experiments.rows.rows import Row


class Text(Inputs):
    """One or two texts.

    Attributes:
        tokenizer_options: what the tokenizer is loaded with.
    """

    network = "a text classifier"
    tokenizer_options: ClassVar[Mapping[str, Any]] = {}

    def fault(self, value: Any) -> str | None:
        """Text."""
        return None if isinstance(value, str) else "it must be text"

    def load_processor(self, source: str) -> Any:
        """The tokenizer."""
        from transformers import AutoTokenizer

        # Without trust_remote_code=False, transformers would ask on the terminal, and wait.
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **self.tokenizer_options)

    def settle(self, name: str, network: Any, processor: Any) -> None:
        """A tokenizer without a padding token (GPT-2, LLaMA) pads with its end-of-sequence token, and the network is
        told; rows are no longer than the network's positions reach.

        Raises:
            BaseModelError: there were no tokenizer files, or no token to pad with.
        """
        # From a folder without tokenizer files, transformers makes a tokenizer to which every word is unknown.
        if len(processor) <= len(processor.all_special_tokens):
            raise BaseModelError(
                f"The base model {name!r} comes without tokenizer files. Save its tokenizer into the same folder: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
            )
        if processor.pad_token is None and processor.eos_token is None:
            raise BaseModelError(
                f"The tokenizer of {name!r} has neither a padding nor an end-of-sequence token, so rows of different "
                "length cannot share a batch. Set tokenizer.pad_token and save it into a local folder."
            )
        if processor.pad_token is None:
            processor.pad_token = processor.eos_token
        network.config.pad_token_id = processor.pad_token_id
        # Not every saved tokenizer knows how far the network's positions reach; beyond them it would fail.
        positions = getattr(network.config, "max_position_embeddings", None)
        if isinstance(positions, int) and 0 < positions < processor.model_max_length:
            processor.model_max_length = positions

    def encode(
        self,
        task: ReadableTask,
        rows: Sequence[Row],
        processor: Any,
        *,
        max_length: int | None,
        labels: Sequence[Any] | None,
    ) -> Encoded:
        """A data set of token lists, not padded. Nothing is cached on disk.

        Args:
            task: says which texts.
            rows: with these texts.
            processor: the tokenizer; of a pair, the longer text is cut first.
            max_length: tokens per row; None takes the task's, or what the base model can read where that is less.
            labels: of the rows, or None.

        Returns:
            The tokenizer's outputs, each (example, token), and ``labels``, (example,).

        Raises:
            DataError: a row of which no token is made.
            ConfigurationError: `max_length` is more than the base model can read.
        """
        from datasets import Dataset

        readable = processor.model_max_length
        if max_length is not None and not 1 <= max_length <= readable:
            raise ConfigurationError(
                f"max_length={max_length!r} must be from 1 to {readable}, what the base model can read."
            )
        limit = min(task.max_length, readable) if max_length is None else max_length
        texts = [list(column) for column in zip(*map(task.texts, rows), strict=True)]
        columns = self.tokens(processor, texts, labels, limit)
        empty = [number for number, tokens in enumerate(columns["input_ids"], start=1) if not len(tokens)]
        if empty:
            raise DataError(
                f"Task {task.name!r}: row {empty[0]} has no text "
                f"({', '.join(map(repr, task.texts(rows[empty[0] - 1])))}), and this tokenizer makes no token of it; "
                f"{len(empty)} of {len(rows)} rows are like that. Leave them out, or write something there."
            )
        return Dataset.from_dict(columns)

    def tokens(
        self, tokenizer: Any, texts: Sequence[Sequence[Any]], labels: Sequence[Any] | None, limit: int
    ) -> dict[str, Any]:
        """The tokenizer's columns for the one or two texts of each row, and ``labels`` where they are given.

        Args:
            tokenizer: of the base model; of a pair, the longer text is cut first.
            texts: one or two columns of texts.
            labels: as the network learns them, or None.
            limit: tokens after which a row is cut.
        """
        # GPT-2's tokenizer sets nothing between the texts of a pair, which would run into each other.
        if len(texts) == 2 and tokenizer.num_special_tokens_to_add(pair=True) == 0:
            texts = [texts[0], ["\n" + text for text in texts[1]]]
        columns = dict(tokenizer(*texts, truncation="longest_first", max_length=limit, padding=False))
        return columns if labels is None else {**columns, "labels": labels}

    def lengths(self, data: Encoded) -> Sequence[int]:
        """Tokens."""
        return [len(tokens) for tokens in data["input_ids"]]

    def collate(self, processor: Any) -> Any:
        """Pads tokens."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(processor)
