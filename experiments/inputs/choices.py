"""Questions with options, as tokens."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.inputs.completion_tokens import CompletionTokens, continuations
from bayes_lora.experiments.inputs.inputs import Encoded
from bayes_lora.experiments.inputs.text import Text
from bayes_lora.experiments.rows.choice_rows import LETTERS, options_of
from bayes_lora.experiments.rows.completion_rows import instructed
from bayes_lora.inference.generation.prompt_tokens import front_of
from bayes_lora.labels import UNLABELLED


class Choices(Text):
    """A question, and what may stand behind it: the letters of its options, which it lists, or their texts.

        Question: Which is hot?        Question: Which is hot?
        A. ice                         Answer: ice | fire
        B. fire
        Answer: A | B

    A row that is too long loses the beginning of its question, and a warning says how many did.

    Args:
        letters: which of the two.
    """

    network = "a causal language model"
    suggested = ("smollm2", "openai-community/gpt2")
    max_length = 512

    def __init__(self, *, letters: bool) -> None:
        self.letters = self.named = letters  # what has a name only has to have tokens of its own

    def fault(self, value: Any) -> str | None:
        """A question, or options."""
        if isinstance(value, str):
            return None if value.strip() else "it must be text, and not empty"
        try:
            options_of(value)
        except DataError as error:
            return str(error)
        return None

    def shown(self, value: Any) -> str:
        """The question, or the options with their letters."""
        if isinstance(value, str):
            return value
        return "  ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, value, strict=False))

    def prompt(self, question: str, options: Sequence[str]) -> tuple[str, list[str]]:
        """What the network reads, and what may follow."""
        if not self.letters:
            return f"Question: {question}\nAnswer:", [f" {option}" for option in options]
        listed = [f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False)]
        return f"Question: {question}\n{''.join(listed)}Answer:", [f" {letter}" for letter in LETTERS[: len(options)]]

    def tokens(
        self, tokenizer: Any, texts: Sequence[Sequence[Any]], labels: Sequence[Any] | None, limit: int
    ) -> dict[str, Any]:
        """Tokens of the question, and of every option as they continue it.

        Raises:
            DataError: a row is no question with options, an option alone is too long, or its tokens are those of
                another letter; names the row.
        """
        if len(texts) != 2:
            raise DataError("multiple choice reads a question and its options. Name two text columns.")
        keeps, cut, twins = len(front_of(tokenizer)), 0, 0
        columns: dict[str, Any] = {"input_ids": [], "attention_mask": [], "option_ids": []}
        for number, (question, written) in enumerate(zip(*texts, strict=True), start=1):
            try:
                options = options_of(written)
                prompt, said = self.prompt(question, options)
                asked, found = continuations(tokenizer, prompt, said)
            except DataError as error:
                raise DataError(f"row {number}: {error}") from error
            longest = max(found, key=len)
            if len(longest) >= limit:
                raise DataError(
                    f"row {number}: an option has {len(longest)} tokens, and a row has room for {limit}, of which one "
                    "at least is the question's. Leave it out, or give a larger --max-length, as far as the base "
                    "model reads."
                )
            if self.named and len(set(map(tuple, found))) < len(found):
                raise DataError(
                    f"row {number}: this tokenizer makes the same tokens of two of {', '.join(said)}, so that they "
                    "cannot be told apart. Score texts: --scoring likelihood."
                )
            twins += len(set(options)) < len(options)
            row = CompletionTokens(asked, longest).cut(limit, keeps)
            cut += len(row.prompt) < len(asked)
            columns["input_ids"].append(row.prompt)
            columns["attention_mask"].append([1] * len(row.prompt))
            columns["option_ids"].append(found)
        if cut:
            warnings.warn(
                f"{cut} of {number} rows have more than {limit} tokens: the beginning of their questions is left out. "
                "--max-length says how many a row may have.",
                stacklevel=2,
            )
        if twins:
            warnings.warn(
                f"{twins} of {number} rows have two options with the same text, of which a label names one: whether a "
                "prediction is right is chance there.",
                stacklevel=2,
            )
        return columns if labels is None else {**columns, "labels": list(labels)}

    def lengths(self, data: Encoded) -> Sequence[int]:
        """Tokens of question and options."""
        options = (sum(map(len, row)) for row in data["option_ids"])
        return [len(asked) + more for asked, more in zip(data["input_ids"], options, strict=True)]

    def collate(self, processor: Any) -> Any:
        """Pads questions as the tokenizer does, and options behind their ends."""
        return ChoiceCollator(processor)


class WrittenChoices(Choices):
    """A question as an instruction that lists its options, and answers that are to be written, as in LLM-Adapters.

    The instruction is in the form of Alpaca. An answer is "the correct answer is answer2", and its end; what names the
    option is the last token that all answers begin with, and what follows: "answer2".
    """

    def __init__(self) -> None:
        super().__init__(letters=False)
        self.named = True

    def prompt(self, question: str, options: Sequence[str]) -> tuple[str, list[str]]:
        """The instruction, and the answers."""
        names = [f"answer{number}" for number in range(1, len(options) + 1)]
        listed = " ".join(f"{name.capitalize()}: {option}" for name, option in zip(names, options, strict=True))
        asked = f"Please choose the correct answer to the question: {question}\n\n{listed}\n\n"
        return (
            instructed(f"{asked}Answer format: {'/'.join(names)}"),
            [f"the correct answer is {name}" for name in names],
        )

    def tokens(
        self, tokenizer: Any, texts: Sequence[Sequence[Any]], labels: Sequence[Any] | None, limit: int
    ) -> dict[str, Any]:
        """As of `Choices`, with the end of a text behind every answer, and what names each option; there is room for
        what will be written."""
        from bayes_lora.models.likelihoods.generated_choice import WRITTEN_TOKENS

        columns = super().tokens(tokenizer, texts, labels, limit - WRITTEN_TOKENS)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        answers = columns["option_ids"]
        columns["name_ids"] = [_names(options) for options in answers]
        columns["option_ids"] = [[option + end for option in options] for options in answers]
        return columns


def _names(answers: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of each answer, from the last of the tokens that all of them begin with."""
    shared = next(place for place, tokens in enumerate(zip(*answers, strict=False)) if len(set(tokens)) > 1)
    return [list(answer[max(0, shared - 1) :]) for answer in answers]


class ChoiceCollator:
    """Makes a batch of rows of multiple choice: `option_ids` (row, option, token) has -100 where there is nothing."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import DataCollatorWithPadding

        self._pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ragged = [name for name in ("option_ids", "name_ids") if name in rows[0]]
        batch = dict(self._pad([{name: of for name, of in row.items() if name not in ragged} for row in rows]))
        return {**batch, **{name: _filled([row[name] for row in rows]) for name in ragged}}


def _filled(values: Sequence[Sequence[Sequence[int]]]) -> Any:
    """(row, option, token), with -100 where there is nothing."""
    import torch

    most, longest = max(map(len, values)), max(len(of) for options in values for of in options)
    filled = torch.full((len(values), most, longest), UNLABELLED)
    for index, options in enumerate(values):
        for place, tokens in enumerate(options):
            filled[index, place, : len(tokens)] = torch.as_tensor(tokens)
    return filled
