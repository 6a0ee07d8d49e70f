"""Texts that a network wrote as one HTML page, their tokens shaded by how sure it was of each."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from bayes_lora.choices import TokenMeasure
from bayes_lora.experiments.reports.page import Section, rendered
from bayes_lora.experiments.rows.completion_rows import COMPLETION, PROMPT
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.runs.writing import token_values, visible
from bayes_lora.files import write_file

MEASURES: tuple[TokenMeasure, ...] = get_args(TokenMeasure)
# Of the tokens so many have a weaker colour than the strongest: a single one would leave all others pale.
_BELOW_FULL = 0.95
_LEAST_FULL = 1e-3  # nats: what is smaller still is no reason for a colour


def write_texts_page(
    path: Path,
    title: str,
    rows: Sequence[Row],
    about: str,
    *,
    marks: Sequence[str] | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Write the page, which holds all that it needs; returns its path.

    Args:
        path: of the page.
        title: its heading.
        rows: as `write_texts` makes them.
        about: a sentence on how the texts were written.
        marks: a word for each row, such as "right" or "wrong".
        sections: with tables, above the texts.
    """
    full = {measure: _full(rows, measure) for measure in MEASURES}
    named = marks or [""] * len(rows)
    page = {
        "title": title,
        "about": about,
        "sections": sections,
        "full": full,
        "texts": [_text(row, mark, full) for row, mark in zip(rows, named, strict=True)],
    }
    write_file(path, rendered("texts.html", page))
    return path


def _full(rows: Sequence[Row], measure: TokenMeasure) -> float:
    """The value of the strongest colour: for probabilities 1, else that which most tokens of the page are below."""
    if measure == "probability":
        return 1.0
    values = sorted(value for row in rows for value in token_values(row, measure))
    return max(values[int(_BELOW_FULL * (len(values) - 1))], _LEAST_FULL)


def _text(row: Row, mark: str, full: Mapping[TokenMeasure, float]) -> dict[str, Any]:
    """What the template shows of a row."""
    prompt = row[PROMPT]
    messages = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    shades = {
        measure: [min(max(value / full[measure], 0.0), 1.0) for value in token_values(row, measure)]
        for measure in MEASURES
    }
    columns = ("token_texts", "token_log_probs", "total_entropy", "aleatoric_entropy", "mutual_information")
    tokens = [
        {
            "text": visible(text),
            "log_prob": log_prob,
            "probability": math.exp(log_prob),
            "total": total,
            "aleatoric": aleatoric,
            "information": information,
            "shades": {measure: shades[measure][index] for measure in MEASURES},
        }
        for index, (text, log_prob, total, aleatoric, information) in enumerate(
            zip(*(row[name] for name in columns), strict=True)
        )
    ]
    count = len(tokens)
    return {
        "mark": mark,
        "messages": [{**message, "content": visible(message["content"])} for message in messages],
        "expected": row.get(COMPLETION),
        "tokens": tokens,
        "finished": row["finished"],
        "log_prob": sum(row["token_log_probs"]),
        "entropy": sum(row["total_entropy"]) / count,
        "information": sum(row["mutual_information"]) / count,
        "answers": _answers(row) if "answers" in row else None,
    }


def _answers(row: Row) -> dict[str, Any]:
    """Clusters, the largest first, with their shares and what is in them: each wording and how often."""
    clusters: dict[int, dict[str, int]] = {}
    for answer in row["answers"]:
        wordings = clusters.setdefault(answer["cluster"], {})
        text = visible(answer["text"].strip())
        wordings[text] = wordings.get(text, 0) + 1
    count = len(row["answers"])
    return {
        "count": count,
        "clusters": [
            {"share": sum(wordings.values()) / count, "wordings": sorted(wordings.items(), key=lambda item: -item[1])}
            for _, wordings in sorted(clusters.items())
        ],
        **{name: row[name] for name in ("agreement", "semantic_entropy", "discrete_semantic_entropy")},
    }
