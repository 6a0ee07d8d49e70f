"""Tables, figures and tests from the stored predictions of a study."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from bayes_lora.choices import Splits
from bayes_lora.experiments.compare.columns import Column, columns_of, of_set
from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.running import Results, outside_part
from bayes_lora.experiments.compare.significance import Differences, significance
from bayes_lora.experiments.reports import plots
from bayes_lora.experiments.reports.page import png
from bayes_lora.files import write_file
from bayes_lora.inference.storage.predictions import StoredPrediction
from bayes_lora.metrics.bootstrap import mean_and_standard_error
from bayes_lora.metrics.contrast import Contrast
from bayes_lora.metrics.regression import QUANTILES
from bayes_lora.metrics.uncertainty import risk_coverage_curve, uncertainty_scores

RESULTS_FILE, SIGNIFICANCE_FILE = "results.csv", "significance.csv"
MARKDOWN_FILE, LATEX_FILE = "table.md", "table.tex"
RELIABILITY_FILE, RISK_FILE, MINUS_FILES = "reliability.png", "risk_coverage.png", "minus_*.png"
OVERVIEW_FILE = "overview.png"
# All that there may be, as patterns, in the order in which a reader wants them.
FILES = (
    *(RESULTS_FILE, MARKDOWN_FILE, LATEX_FILE, SIGNIFICANCE_FILE),
    *(OVERVIEW_FILE, RELIABILITY_FILE, RISK_FILE, MINUS_FILES),
)


# Of the overview, and of the pictures of differences.
_SHOWN = ("nll", "ood_auroc")
_COMPARED = ("accuracy", "nll", "crps", "rps", "aurc", "ood_auroc")

Scores = dict[Method, dict[int, dict[str, float]]]  # by method, seed and metric


def scores(results: Results) -> Scores:
    """All metrics and costs of everything that is there."""
    found: Scores = {}
    for method in results.methods:
        for seed in results.seeds:
            if not results.is_done(method, seed):
                continue
            stored = results.read(method, seed)
            about = stored.about
            found.setdefault(method, {})[seed] = {
                **stored.likelihood.all_metrics(stored.prediction),
                **_outside_metrics(results, method, seed, stored),
                "train_seconds": about.train_seconds,
                "predict_seconds": about.predict_seconds,
                "peak_memory_mib": about.peak_memory_bytes / 2**20,
            }
    return found


def _outside_metrics(results: Results, method: Method, seed: int, stored: StoredPrediction) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in results.outside:
        outside = results.read(method, seed, outside_part(name)).prediction
        told = stored.likelihood.outside_metrics(stored.prediction, outside)
        found |= {of_set(metric, name): value for metric, value in told.items()}
    return found


def write_report(
    results: Results, references: Sequence[Method], short: Mapping[Method, str] = MappingProxyType({})
) -> Scores:
    """Write every table and figure into the study's folder; returns the numbers behind them.

    Args:
        results: of the study.
        references: the methods that all others are tested against.
        short: names of methods in the overview, which then has these alone, in their order.
    """
    found, folder = scores(results), results.folder
    if not found:
        return found
    write_file(folder / RESULTS_FILE, _csv(_long_rows(results, found)))
    differences = significance(results, references)
    tables = markdown(found) + "\n" + over_seeds(results.splits) + "\n" + markdown_differences(differences)
    write_file(folder / MARKDOWN_FILE, tables.encode())
    write_file(folder / LATEX_FILE, latex(found).encode())
    (folder / SIGNIFICANCE_FILE).unlink(missing_ok=True)  # it may be about other references
    if differences:
        write_file(folder / SIGNIFICANCE_FILE, _csv(_difference_rows(differences)))
    _draw(results, found, folder)
    _draw_overview(found, folder, short)
    _draw_differences(differences, folder)
    return found


def over_seeds(splits: Splits) -> str:
    """What a standard error or an interval over seeds contains, in words."""
    if splits == "shared":
        return (
            "Over seeds is over initializations, orders of rows and draws. All seeds have the same training and "
            "held-out rows: what other ones would give, and what they would choose, is in no interval."
        )
    return (
        "Over seeds is over training and held-out rows, what is chosen by them, initializations, orders of rows and "
        "draws. The rows that are predicted are the same."
    )


def markdown(found: Scores) -> str:
    """A Markdown table: mean and standard error over seeds, the best of each column in bold."""
    columns = present(found)
    lines = ["| method | seeds | " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for method, cells in table_cells(found, columns, "**{}**", " ± ").items():
        lines.append(f"| {method.label} | {len(found[method])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown_differences(differences: Differences) -> str:
    """A Markdown table for each reference, of the methods minus it: bold where better, italic where worse, plain where
    other rows or another training might turn it round, see `Contrast.sign`."""
    lines: list[str] = []
    for reference in dict.fromkeys(reference for _, reference in differences):
        rows = {method: metrics for (method, of), metrics in differences.items() if of == reference}
        columns = columns_of(metric for metrics in rows.values() for metric in metrics)
        lines += ["", f"## Minus {reference.label}", ""]
        lines += [
            "Mean over seeds ± standard error over seeds [95 % interval over rows, paired bootstrap]; **better** or",
            "*worse* where 0 is outside of that interval and of the 95 % interval over seeds (Student's t), too.",
            "",
        ]
        lines += [
            "| method | " + " | ".join(column.title for column in columns) + " |",
            "|---" * (1 + len(columns)) + "|",
        ]
        for method, metrics in rows.items():
            cells = [_difference_cell(metrics[column.metric], column) for column in columns]
            lines.append(f"| {method.label} | " + " | ".join(cells) + " |")
    return "".join(f"{line}\n" for line in lines)


def latex(found: Scores) -> str:
    """The same as a LaTeX tabular (booktabs)."""
    columns = present(found)
    lines = [r"\begin{tabular}{lr" + "r" * len(columns) + "}", r"\toprule"]
    lines.append("method & seeds & " + " & ".join(column.title.replace("%", r"\%") for column in columns) + r" \\")
    lines.append(r"\midrule")
    for method, cells in table_cells(found, columns, r"\textbf{{{}}}", r" $\pm$ ").items():
        lines.append(f"{method.label} & {len(found[method])} & ".replace("_", r"\_") + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def present(found: Scores) -> list[Column]:
    """The columns that there are numbers for."""
    return columns_of(metric for of_seeds in found.values() for numbers in of_seeds.values() for metric in numbers)


def table_cells(found: Scores, columns: Sequence[Column], best: str, between: str) -> dict[Method, list[str]]:
    """The text of each method's cells: the mean over seeds, written as `best` says where it is the best, `between` and
    the standard error, where there are two seeds or more."""
    texts: dict[Method, list[str]] = {method: [] for method in found}
    for column in columns:
        summaries = {
            method: mean_and_standard_error([numbers[column.metric] for numbers in of_seeds.values()])
            for method, of_seeds in found.items()
        }
        shown = {method: f"{column.factor * mean:.{column.digits}f}" for method, (mean, _) in summaries.items()}
        most = max(len(of_seeds) for of_seeds in found.values())  # methods with fewer seeds are not compared yet
        whole = [mean for method, (mean, _) in summaries.items() if len(found[method]) == most]
        means = [mean for mean in whole if not math.isnan(mean)]
        top = None
        if column.higher_is_better is not None and means:
            top = f"{column.factor * (max if column.higher_is_better else min)(means):.{column.digits}f}"
        for method, (_, error) in summaries.items():
            text = best.format(shown[method]) if shown[method] == top else shown[method]
            spread = "" if math.isnan(error) else f"{between}{column.factor * error:.{column.digits}f}"
            texts[method].append(text + spread)
    return texts


def _difference_cell(of: Contrast, column: Column) -> str:
    numbers = (of.rows.estimate, of.rows.low, of.rows.high)
    estimate, *interval = (f"{column.factor * number:+.{column.digits}f}" for number in numbers)
    error = of.standard_error
    spread = "" if math.isnan(error) else f" ± {column.factor * error:.{column.digits}f}"
    text = f"{estimate}{spread} [{', '.join(interval)}]"
    if not of.sign:
        return text
    return f"**{text}**" if (of.sign > 0) == column.higher_is_better else f"*{text}*"


def _long_rows(results: Results, found: Scores) -> list[dict[str, object]]:
    rows = []
    for method, of_seeds in found.items():
        for seed, numbers in of_seeds.items():
            chosen = ";".join(f"{name}={value:.6g}" for name, value in results.chosen(method, seed).items())
            rows.append({"method": method.label, "seed": seed, **numbers, "chosen": chosen})
    return rows


def _difference_rows(differences: Differences) -> list[dict[str, object]]:
    return [
        {
            "method": method.label,
            "minus": reference.label,
            "metric": metric,
            "difference": of.rows.estimate,
            "low_95": of.rows.low,
            "high_95": of.rows.high,
            "p_value": of.rows.p_value,
            "resamples": of.rows.num_resamples,
            "seeds": len(of.of_seeds),
            "standard_error_over_seeds": of.standard_error,
        }
        for (method, reference), metrics in differences.items()
        for metric, of in metrics.items()
    ]


def _csv(rows: Sequence[Mapping[str, object]]) -> bytes:
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)  # some methods have numbers that others do not
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _draw(results: Results, found: Scores, folder: Path) -> None:
    """Figures over all seeds."""
    probs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    curves: dict[str, tuple[Tensor, Tensor]] = {}
    for method, of_seeds in found.items():
        stored = [results.read(method, seed) for seed in of_seeds]
        choices = [each.likelihood.choices(each.prediction) for each in stored]
        predictions = [prediction for prediction in choices if prediction is not None]
        if not predictions:
            _draw_quantiles(results, found, folder)
            return
        labels = [prediction.labels for prediction in predictions if prediction.labels is not None]
        of_each = zip(predictions, labels, strict=True)
        probs[method.label] = [(prediction.mean_probs, own) for prediction, own in of_each]
        risks = [
            risk_coverage_curve(uncertainty_scores(prediction)["max_prob"], prediction.mean_probs.argmax(-1) != own)
            for prediction, own in zip(predictions, labels, strict=True)
        ]
        curves[method.label] = risks[0][0], torch.stack([risk for _, risk in risks]).mean(0)
    write_file(folder / RELIABILITY_FILE, png(plots.reliability_panels(probs)))
    write_file(folder / RISK_FILE, png(plots.risk_coverage(curves)))


def _draw_quantiles(results: Results, found: Scores, folder: Path) -> None:
    """Of real numbers: how many labels lie below each predicted quantile; of other predictions nothing is drawn."""
    first, of_seeds = next(iter(found.items()))
    stored = results.read(first, next(iter(of_seeds)))
    if stored.likelihood.numbers(stored.prediction) is None:
        return
    shares = {
        method.label: np.mean([results.read(method, seed).prediction.shares_below for seed in of_seeds], axis=0)
        for method, of_seeds in found.items()
    }
    write_file(folder / RELIABILITY_FILE, png(plots.quantile_calibration(QUANTILES.tolist(), shares)))


def _draw_overview(found: Scores, folder: Path, short: Mapping[Method, str]) -> None:
    """The metrics that a posterior is for, with 95 % intervals over seeds (Student's t)."""
    columns = [column for column in present(found) if column.base in _SHOWN]
    named = {method: short.get(method, method.label) for method in (short or found) if method in found}
    panels = {
        column.title: {
            name: _interval([column.factor * numbers[column.metric] for numbers in found[method].values()])
            for method, name in named.items()
        }
        for column in columns
    }
    figure = plots.overview(panels, {column.title: bool(column.higher_is_better) for column in columns})
    write_file(folder / OVERVIEW_FILE, png(figure))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval over seeds."""
    mean, error = mean_and_standard_error(values)
    return mean, error * float(student.ppf(0.975, len(values) - 1)) if len(values) > 1 else math.nan


def _draw_differences(differences: Differences, folder: Path) -> None:
    """A picture for each reference, of one metric for each thing that can be better."""
    found = columns_of(metric for metrics in differences.values() for metric in metrics)
    columns = [column for column in found if column.base in _COMPARED]
    for earlier in folder.glob(MINUS_FILES):  # of other references
        earlier.unlink()
    for reference in dict.fromkeys(reference for _, reference in differences):
        panels: dict[str, dict[str, plots.Shown]] = {}
        for (method, of), metrics in differences.items():
            for column in columns:
                one = metrics.get(column.metric)
                if of == reference and one and not math.isnan(one.rows.low):
                    scaled = [column.factor * number for number in (one.rows.estimate, one.rows.low, one.rows.high)]
                    of_seeds = tuple(column.factor * number for number in one.of_seeds)
                    shown = plots.Shown(scaled[0], scaled[1], scaled[2], of_seeds, one.sign)
                    panels.setdefault(column.title, {})[method.label] = shown
        better = {column.title: bool(column.higher_is_better) for column in columns}
        if panels:
            figure = plots.differences(panels, reference.label, better)
            write_file(folder / MINUS_FILES.replace("*", reference.folder), png(figure))
