"""The study of answers as files: every number as CSV, a table for each thing that is to be told, and a picture."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from bayes_lora.experiments.asking.scores import BASELINE, TITLES
from bayes_lora.experiments.asking.study import PLAIN, POSTERIOR, asked_of
from bayes_lora.experiments.asking.telling import TARGETS, Asked, interval, targets_of
from bayes_lora.experiments.reports.page import png
from bayes_lora.experiments.reports.plots import COLOURS
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.files import write_file
from bayes_lora.inference import mean_difference
from bayes_lora.metrics.bootstrap import Difference, resampled_difference

RESULTS_FILE, TABLE_FILE, PICTURE_FILE = "results.csv", "table.md", "aurocs.png"


@dataclass(frozen=True)
class Told:
    """How well one score of one predictor tells something; means over runs, and 95 % intervals over questions.

    Attributes:
        target, predictor, score: see `TARGETS`, `AskingStudy.predictors` and `TITLES`.
        auroc, low, high: and its interval.
        minus: the AUROC less that of the plain adapter's entropy, the mean over tokens, by the paired bootstrap.
        num_runs: that the means are over.
        num_questions: that it is about.
    """

    target: str
    predictor: str
    score: str
    auroc: float
    low: float
    high: float
    minus: Difference
    num_runs: int
    num_questions: int


def telling(found: Mapping[str, Sequence[Sequence[Row]]], *, num_resamples: int = 2_000) -> list[Told]:
    """Every score of every predictor, for all that there is to be told."""
    asked = {kind: [asked_of(rows) for rows in runs] for kind, runs in found.items()}
    told = []
    for target in targets_of([one for runs in asked.values() for one in runs]):
        baseline = [one.resampled(target, BASELINE, num_resamples=num_resamples) for one in asked[PLAIN]]
        for kind, runs in asked.items():
            for score in runs[0].scores:
                values = [one.resampled(target, score, num_resamples=num_resamples) for one in runs]
                mean, number = torch.stack(values).mean(0), len(runs[0].told(target, score)[0])
                minus = resampled_difference(values, baseline)
                told.append(Told(target, kind, score, *interval(mean), minus, len(runs), number))
    return told


def write_report(found: Mapping[str, Sequence[Sequence[Row]]], folder: Path) -> list[Told]:
    """Write results, tables and picture; returns what is in them."""
    told = telling(found)
    write_file(folder / RESULTS_FILE, _csv(told).encode())
    write_file(folder / TABLE_FILE, _markdown(found, told).encode())
    if told:
        write_file(folder / PICTURE_FILE, png(picture(told)))
    return told


def sentences(found: Mapping[str, Sequence[Sequence[Row]]]) -> list[str]:
    """How much is right, and what could not be parsed."""
    asked = {kind: [asked_of(rows) for rows in runs] for kind, runs in found.items()}
    lines, shares = [], {kind: _right(runs) for kind, runs in asked.items()}
    for kind, right in shares.items():
        rows = [row for run in found[kind] for row in run]
        parsed = [row["parsed"] is None for row in rows if "parsed" in row]
        answers = [(row["num_unparsed"], len(row["answers"])) for row in rows if "num_unparsed" in row]
        said = [f"{100 * float(right.mean()):.1f} % of {right.shape[-1]} answers right"] if right.numel() else []
        said += [f"{sum(parsed)} of {len(parsed)} texts could not be parsed"] if parsed else []
        if answers:
            unparsed, all_of_them = map(sum, zip(*answers, strict=True))
            said.append(f"{unparsed} of {all_of_them} independent answers could not be parsed")
        lines.append(f"{kind}: {', '.join(said) or 'nothing to be right about'}.")
    ours, theirs = (100 * shares[kind] for kind in (POSTERIOR, PLAIN))
    if ours.numel():
        difference = _cell(mean_difference(ours, theirs), 1)
        lines.append(f"Right answers of the posterior less those of the plain adapter: {difference} points.")
    return lines


def _right(runs: Sequence[Asked]) -> torch.Tensor:
    """(run, answerable question)."""
    return torch.stack([1 - one.wrong for one in runs])


def table_rows(told: Sequence[Told], target: str) -> list[list[str]]:
    """Of one target: a row for each score with what each predictor has of it, the head first."""
    of_target = [one for one in told if one.target == target]
    kinds = list(dict.fromkeys(one.predictor for one in of_target))
    rows = [["told by", *(cell for kind in kinds for cell in (f"{kind}: AUROC", "less plain entropy's"))]]
    for score in dict.fromkeys(one.score for one in of_target):
        row = [TITLES[score]]
        for kind in kinds:
            one = next((one for one in of_target if (one.score, one.predictor) == (score, kind)), None)
            is_baseline = one is not None and (kind, score) == (PLAIN, BASELINE)
            row += ["", ""] if one is None else [f"{one.auroc:.3f} [{one.low:.3f}, {one.high:.3f}]", ""]
            if one is not None and not is_baseline:
                row[-1] = _cell(one.minus, 3)
        rows.append(row)
    return rows


def picture(told: Sequence[Told]) -> Figure:
    """The AUROC of every score and its interval, a panel for each thing that is told; dashed is the baseline."""
    targets = list(dict.fromkeys(one.target for one in told))
    names = list(dict.fromkeys(one.score for one in told))
    kinds = list(dict.fromkeys(one.predictor for one in told))
    figure = Figure(figsize=(3.6 * len(targets) + 3.2, 1.2 + 0.34 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axes, target in zip(grid, targets, strict=True):
        for position, (kind, colour) in enumerate(zip(kinds, COLOURS, strict=False)):
            own = [one for one in told if (one.target, one.predictor) == (target, kind)]
            places = [names.index(one.score) + 0.24 * (position - (len(kinds) - 1) / 2) for one in own]
            ends = [[one.auroc - one.low for one in own], [one.high - one.auroc for one in own]]
            values = [one.auroc for one in own]
            axes.errorbar(values, places, xerr=ends, fmt="o", color=colour, capsize=2, markersize=4, label=kind)
            if kind == PLAIN:
                baseline = next(one.auroc for one in own if one.score == BASELINE)
                axes.axvline(baseline, color="#767676", linestyle="--", linewidth=1)
        axes.set_title(TARGETS[target], fontsize=10)
        axes.grid(axis="x", color="#dddddd")
    grid[0].set_yticks(range(len(names)), [TITLES[name] for name in names], fontsize=9)
    grid[0].invert_yaxis()
    figure.supxlabel("AUROC, and its 95 % interval over questions", fontsize=10)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _cell(difference: Difference, digits: int) -> str:
    """The difference, its interval, and in a word which way that excludes 0."""
    if math.isnan(difference.low):
        return "-"
    said = " better" if difference.low > 0 else " worse" if difference.high < 0 else ""
    ends = ", ".join(f"{end:+.{digits}f}" for end in (difference.low, difference.high))
    return f"{difference.estimate:+.{digits}f} [{ends}]{said}"


def _csv(told: Sequence[Told]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["target", "predictor", "score", "auroc", "low", "high", "minus_baseline", "minus_low", "minus_high"]
    writer.writerow([*head, "p_value", "resamples", "runs", "questions"])
    for one in told:
        numbers = [one.auroc, one.low, one.high, *astuple(one.minus)]
        shown = ["" if isinstance(value, float) and math.isnan(value) else f"{value:.6g}" for value in numbers]
        writer.writerow([one.target, one.predictor, one.score, *shown, one.num_runs, one.num_questions])
    return text.getvalue()


def _markdown(found: Mapping[str, Sequence[Sequence[Row]]], told: Sequence[Told]) -> str:
    lines = [*(f"{line}\n" for line in sentences(found))]
    for target in dict.fromkeys(one.target for one in told):
        head, *rows = table_rows(told, target)
        lines += [f"## Telling {TARGETS[target]}", "", *map(_line, (head, ["---"] * len(head), *rows)), ""]
    if told:
        lines += [
            "AUROC: the share of pairs of which the score says which is which; .5 is chance. Intervals are of 95 %, "
            f"over questions, given what was fitted ({told[0].num_runs} of each). Plain entropy is that of the plain "
            "adapter, the mean over tokens. Each predictor is to tell its own errors.",
            "",
            f"![AUROCs]({PICTURE_FILE})",
            "",
        ]
    else:
        lines += [
            "There is nothing to tell: all answers are right or all wrong, and all questions have one or none.",
            "",
        ]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
