"""What the ground-truth study found: one file of numbers, a page of tables, pictures."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bayes_lora.experiments.ground_truth.measures import mean_and_error
from bayes_lora.experiments.ground_truth.plots import lemma_panels, measure_panels, rank_histograms
from bayes_lora.experiments.ground_truth.study import (
    Study,
    calibration_jobs,
    calibration_samplers,
    contestants_of,
    read_job,
)
from bayes_lora.files import write_file, write_json
from bayes_lora.inference.diagnostics.simulation_based_calibration import FAILURE_RATE, Ranks

RESULTS_FILE, TABLE_FILE = "results.json", "table.md"
MEASURES_FILE, RANKS_FILE, LEMMAS_FILE = "measures.png", "ranks.png", "lemmas.png"

# By name of the measure: heading, number format.
COLUMNS = {
    "mean_error": ("mean error, relative", "{:.3f}"),
    "mean_error_sd": ("mean error, sd", "{:.3f}"),
    "log_variance_ratio": ("ln variance ratio", "{:+.2f}"),
    "coverage_50": ("coverage of 50 %", "{:.3f}"),
    "coverage_90": ("coverage of 90 %", "{:.3f}"),
    "predictive_kl": ("predictive KL (nats)", "{:.4f}"),
}

Summary = tuple[float, float | None]  # mean over seeds, standard error


@dataclass(frozen=True)
class Findings:
    """Everything that is done of a study.

    Attributes:
        truth: what NUTS said of itself, by kind of problem and seed.
        methods: by kind, method and seed, its `Measures`.
        ranks: by kind and posterior on trial.
        lemmas: by kind and seed, output shifts and curvatures.
    """

    truth: dict[str, dict[int, dict[str, Any]]]
    methods: dict[str, dict[str, dict[int, dict[str, float | None]]]]
    ranks: dict[tuple[str, str], Ranks]
    lemmas: dict[str, dict[int, dict[str, Any]]]

    def to_json(self) -> dict[str, Any]:
        """Every number, and for calibration the counts and the test."""
        calibration = {
            f"{kind}-{name}": {
                "replications": len(ranks.values),
                "p_value": ranks.p_value,
                "verdict": ranks.verdict,
                "counts": ranks.counts.tolist(),
            }
            for (kind, name), ranks in self.ranks.items()
        }
        return {"truth": self.truth, "methods": self.methods, "calibration": calibration, "lemmas": self.lemmas}


def read_findings(study: Study, folder: Path) -> Findings:
    """The jobs that are done.

    Raises:
        DataError: a damaged file.
    """
    truth, lemmas = (
        {kind: _by_seed(study, folder, f"{part}/{kind}") for kind in study.problems} for part in ("truth", "lemmas")
    )
    methods = {
        kind: {
            method.name: found
            for method in contestants_of(study, kind)
            if (found := _by_seed(study, folder, f"methods/{kind}-{method.name}"))
        }
        for kind in study.problems
    }
    ranks = {}
    for (kind, name), (_, replications) in calibration_samplers(study).items():
        parts = [read_job(folder, job) for job in calibration_jobs(kind, name, replications)]
        rows = [row for part in parts if part is not None for row in part["ranks"]]
        if rows:
            ranks[kind, name] = Ranks(torch.tensor(rows))
    return Findings(truth, methods, ranks, lemmas)


def write_report(study: Study, folder: Path) -> Findings:
    """Write results.json, table.md and the pictures, as far as the results go, and return them."""
    found = read_findings(study, folder)
    write_json(folder / RESULTS_FILE, found.to_json())
    write_file(folder / TABLE_FILE, markdown(found).encode())
    panels = {kind: summaries(methods) for kind, methods in found.methods.items() if methods}
    headings = {name: heading for name, (heading, _) in COLUMNS.items() if name != "mean_error"}
    pictures = {
        MEASURES_FILE: measure_panels(panels, headings) if panels else None,
        RANKS_FILE: rank_histograms(found.ranks) if found.ranks else None,
        LEMMAS_FILE: lemma_panels(found.lemmas) if any(found.lemmas.values()) else None,
    }
    for name, figure in pictures.items():
        if figure is not None:
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=110)
            write_file(folder / name, picture.getvalue())
    return found


def summaries(methods: Mapping[str, Mapping[int, Mapping[str, float | None]]]) -> dict[str, dict[str, Summary | None]]:
    """By method and measure, mean over seeds and standard error; None where a method has no such measure."""
    found: dict[str, dict[str, Summary | None]] = {}
    for method, by_seed in methods.items():
        found[method] = {}
        for measure in COLUMNS:
            values = [value for one in by_seed.values() if (value := one[measure]) is not None]
            found[method][measure] = mean_and_error(values) if values else None
    return found


def cells(summary: Mapping[str, Summary | None]) -> list[str]:
    """A method's row of the table, in the order of `COLUMNS`."""
    return [_cell(summary[measure], form) for measure, (_, form) in COLUMNS.items()]


def markdown(found: Findings) -> str:
    """Tables of all measures, of calibration and of the lemmas."""
    lines: list[str] = []
    for kind, methods in found.methods.items():
        if not methods:
            continue
        seeds = max(len(by_seed) for by_seed in methods.values())
        lines += [f"## {kind.capitalize()}: methods against NUTS", "", _truth_line(found.truth[kind]), ""]
        lines += [f"Mean ± standard error over {seeds} problem{'s' if seeds > 1 else ''}.", ""]
        rows = [[name, *cells(summary)] for name, summary in summaries(methods).items()]
        lines += [*_table(["method", *(heading for heading, _ in COLUMNS.values())], rows), ""]
    if found.ranks:
        lines += ["## Simulation-based calibration", ""]
        lines += [f"Chi-square test of the ranks, Bonferroni over quantities; uneven below p = {FAILURE_RATE:g}.", ""]
        rows = [
            [kind, name, str(len(ranks.values)), f"{ranks.p_value:.2g}", ranks.verdict]
            for (kind, name), ranks in found.ranks.items()
        ]
        lines += [*_table(["problem", "posterior", "replications", "p", "ranks"], rows), ""]
    if any(found.lemmas.values()):
        lines += ["## Lemmas", "", "Mean ± standard error over problems.", ""]
        lines += [*_table(["problem", "quantity", "value"], list(_lemma_rows(found.lemmas))), ""]
    return "\n".join(lines)


def _lemma_rows(lemmas: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Iterator[list[str]]:
    for kind, by_seed in lemmas.items():
        if not by_seed:
            continue
        slopes = [one["output_shift"]["slope"] for one in by_seed.values()]
        yield [kind, "slope of ln output shift against ln eps", _cell(mean_and_error(slopes), "{:.4f}")]
        for curvatures in zip(*(one["curvature"] for one in by_seed.values()), strict=True):
            ratios = [found["smoothed"] / found["original"] for found in curvatures]
            name = f"largest eigenvalue, smoothed / original, eps = {curvatures[0]['scale']:g}"
            yield [kind, name, _cell(mean_and_error(ratios), "{:.3f}")]


def _truth_line(truth: Mapping[int, Mapping[str, Any]]) -> str:
    rhat = max(one["largest_rhat"] for one in truth.values())
    fewest = min(one["fewest_effective"] for one in truth.values())
    line = f"NUTS: largest R-hat {rhat:.4f}, fewest effective draws {fewest:.0f}"
    off = [one["mean_off_by_standard_errors"] for one in truth.values() if "mean_off_by_standard_errors" in one]
    return line + (f"; its mean is at most {max(off):.1f} standard errors from the closed form." if off else ".")


def _by_seed(study: Study, folder: Path, name: str) -> dict[int, Any]:
    return {seed: found for seed in study.seeds if (found := read_job(folder, f"{name}-{seed}")) is not None}


def _cell(summary: Summary | None, form: str) -> str:
    if summary is None:
        return "-"
    mean, error = summary
    return form.format(mean) + ("" if error is None else f" ± {form.replace('+', '').format(error)}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    numbers = "|".join(["---", *["---:"] * (len(header) - 1)])
    return [f"| {' | '.join(header)} |", f"|{numbers}|", *(f"| {' | '.join(row)} |" for row in rows)]
