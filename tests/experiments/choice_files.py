"""Two tasks of questions with options, in files as LLM-Adapters has them."""

from pathlib import Path
from typing import Any

from bayes_lora.experiments.rows.rows import write_jsonl
from bayes_lora.experiments.tasks.choice_tasks import files_of

COLOURS = ["red", "very old", "blue", "no house"]


def line(number: int) -> dict[str, Any]:
    """Two to four options, the right one among the first two."""
    options = COLOURS[: 2 + number % 3]
    keys = [f"answer{place + 1}" for place in range(len(options))]
    listed = " ".join(f"{key.capitalize()}: {option}" for key, option in zip(keys, options, strict=True))
    asked = f"Please choose the correct answer to the question: What is house {number}?\n\n{listed}\n\n"
    return {
        "instruction": f"{asked}Answer format: {'/'.join(keys)}",
        "input": "",
        "output": "",
        "answer": keys[number % 2],
    }


def write_tasks(folder: Path) -> Path:
    """arc_easy and arc_challenge, of 20 rows to learn from and 20 to evaluate on each."""
    for first, name in enumerate(("arc_easy", "arc_challenge")):
        for start, file in zip((0, 30), files_of(name), strict=True):
            write_jsonl(
                folder / file, [line(number) for number in range(100 * first + start, 100 * first + start + 20)]
            )
    return folder
