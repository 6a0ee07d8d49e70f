"""Texts on the terminal, their tokens coloured by how sure the network was of them."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from bayes_lora.choices import TokenMeasure
from bayes_lora.experiments.rows.completion_rows import PROMPT
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.runs.writing import token_values, visible

# From where on a token has which colour, the strongest last. Colours have their own ink, so that they can be read on
# light and on dark ground.
_STYLES = ("", "black on #ffe9a8", "black on #ffb65c", "white on #d4451d")
_ENTROPY_LEVELS = ("sure (below 0.2 nats)", "rather sure (below 0.7)", "unsure (below 1.6)", "open (1.6 and more)")
_LEVELS: dict[TokenMeasure, tuple[str, tuple[float, float, float], tuple[str, ...]]] = {
    "entropy": ("How open the token was, all in all", (0.2, 0.7, 1.6), _ENTROPY_LEVELS),
    "mutual-information": (
        "How far the draws disagree about the token",
        (0.01, 0.05, 0.2),
        ("not (below 0.01 nats)", "a little (below 0.05)", "clearly (below 0.2)", "widely (0.2 and more)"),
    ),
    "probability": (
        "How likely the token was",
        (0.1, 0.5, 0.9),
        ("likely (above 90 %)", "rather likely (above 50 %)", "unlikely (above 10 %)", "very unlikely (10 % or less)"),
    ),
}


def print_texts(rows: Sequence[Row], measure: TokenMeasure) -> None:
    """Each prompt with its text, a line of numbers, and what its independent answers say.

    Where colours are shown, a legend comes first; elsewhere there are none, and the numbers say it.
    """
    console = Console()
    if console.color_system is not None and not console.no_color:
        console.print(legend(measure))
    for row in rows:
        console.print()
        console.print(Text(prompt_text(row[PROMPT]), style="dim"))
        console.print(Padding(coloured(row, measure), (0, 0, 0, 2)))
        console.print(Padding(Text(numbers(row), style="dim"), (0, 0, 0, 2)))
        if "answers" in row:
            console.print(Padding(Text("\n".join(answer_lines(row))), (0, 0, 0, 2)))


def legend(measure: TokenMeasure) -> Text:
    """The colours in words."""
    title, _, words = _LEVELS[measure]
    found = Text(f"{title}:")
    for style, word in zip(_STYLES, words, strict=True):
        found.append(" ").append(f" {word} ", style=style)
    return found


def coloured(row: Row, measure: TokenMeasure) -> Text:
    """The text, token by token."""
    found = Text()
    for text, value in zip(row["token_texts"], token_values(row, measure), strict=True):
        level = sum(value >= bound for bound in _LEVELS[measure][1])
        found.append(visible(text), style=_STYLES[level])
    return found


def numbers(row: Row) -> str:
    """Of the whole text, and its least sure token."""
    count, entropies = row["num_tokens"], row["total_entropy"]
    worst = max(range(count), key=entropies.__getitem__)
    return (
        f"{count} token{'s' * (count != 1)}; log-probability {sum(row['token_log_probs']):.2f}; by token entropy "
        f"{sum(entropies) / count:.3f}, mutual information {sum(row['mutual_information']) / count:.4f} nats; "
        f"least sure of {row['token_texts'][worst]!r} ({entropies[worst]:.2f})"
    )


def answer_lines(row: Row) -> list[str]:
    """The clusters of the answers, the largest first, and how far these agree."""
    answers = row["answers"]
    found = [
        f"{len(answers)} answers, {row['agreement']:.0%} of them the same; semantic entropy "
        f"{row['semantic_entropy']:.2f} nats, by counts {row['discrete_semantic_entropy']:.2f}"
    ]
    clusters: dict[int, list[str]] = {}
    for answer in answers:
        clusters.setdefault(answer["cluster"], []).append(visible(" ".join(answer["text"].split())))
    return found + [f"{len(texts):4d} x {texts[0]}" for _, texts in sorted(clusters.items())]


def prompt_text(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """The prompt as people read it."""
    if isinstance(prompt, str):
        return visible(prompt)
    return visible("\n".join(f"{message['role']}: {message['content']}" for message in prompt))
