"""Questions with options, and the slow way to score them: each option in a pass of its own, without any padding."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bayes_lora.models.likelihoods.generated_choice import NAMES
from bayes_lora.models.likelihoods.option_passes import OPTIONS

Row = tuple[list[int], list[list[int]]]
"""A question and its options, as tokens."""


def questions(count: int = 5, *, letters: bool = False) -> list[Row]:
    """Of different lengths, with two to four options of one to five tokens; or letters, of one each."""
    generator = torch.Generator().manual_seed(3)

    def tokens(number: int) -> list[int]:
        return torch.randint(3, 50, (number,), generator=generator).tolist()

    found = []
    for row in range(count):
        options = [[10 + option] for option in range(2 + row % 3)]
        if not letters:
            options = [tokens(1 + (row + 2 * option) % 5) for option in range(2 + row % 3)]
        found.append((tokens(3 + 2 * row), options))
    return found


def choice_batch(rows: list[Row], side: str = "right") -> dict[str, Tensor]:
    """Questions padded on a side; options with -100 behind them; the label is the last option."""
    width, most = (max(len(of[part]) for of in rows) for part in (0, 1))
    longest = max(len(option) for _, options in rows for option in options)
    found: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], OPTIONS: []}
    for question, options in rows:
        missing = width - len(question)
        for key, values in (("input_ids", question), ("attention_mask", [1] * len(question))):
            found[key].append([0] * missing + values if side == "left" else values + [0] * missing)
        filled = [option + [-100] * (longest - len(option)) for option in options]
        found[OPTIONS].append(filled + [[-100] * longest] * (most - len(options)))
    labels = [len(options) - 1 for _, options in rows]
    return {key: torch.tensor(values) for key, values in {**found, "labels": labels}.items()}


def slow_log_probs(network: Any, rows: list[Row], *, per_token: bool = False) -> Tensor:
    """(row, option), with gradients: every option of every row alone."""
    found = []
    for question, options in rows:
        scores = []
        for option in options:
            logits = network(input_ids=torch.tensor([question + option]), use_cache=False).logits[0]
            behind = logits[len(question) - 1 : -1].log_softmax(-1)
            total = behind.gather(-1, torch.tensor(option).unsqueeze(-1)).sum()
            scores.append(total / len(option) if per_token else total)
        found.append(torch.stack(scores))
    return pad_sequence(found, batch_first=True, padding_value=-torch.inf)


def written_batch(rows: list[Row], side: str = "right") -> dict[str, Tensor]:
    """The same, with options that name themselves."""
    batch = choice_batch(rows, side)
    return {**batch, NAMES: batch[OPTIONS]}


def slow_text(network: Any, question: list[int], length: int) -> list[int]:
    """The likeliest token after token, over the whole of what is there, without a cache."""
    tokens = list(question)
    for _ in range(length):
        tokens.append(int(network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(question) :]
