"""Pictures of the ground-truth study."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from bayes_lora.experiments.reports.plots import COLOURS
from bayes_lora.inference.diagnostics.simulation_based_calibration import NUM_BINS, Ranks

_GREY = "#767676"
_TRUTH = {"log_variance_ratio": 0.0, "coverage_50": 0.5, "coverage_90": 0.9}  # what the truth itself has
_LOG = ("mean_error_sd", "predictive_kl")

Summary = tuple[float, float | None]  # mean over seeds, standard error


def measure_panels(
    panels: Mapping[str, Mapping[str, Mapping[str, Summary | None]]], headings: Mapping[str, str]
) -> Figure:
    """Every measure of every method with its standard error over seeds: a row of panels for each kind of problem.

    Args:
        panels: by kind of problem, method and measure.
        headings: of the measures to show, by name.
    """
    heights = [max(1, len(methods)) for methods in panels.values()]
    figure = Figure(figsize=(3.0 * len(headings) + 1.6, 0.24 * sum(heights) + 1.1 * len(panels)), layout="constrained")
    grid = np.atleast_2d(
        figure.subplots(len(panels), len(headings), sharey="row", squeeze=False, height_ratios=heights)
    )
    for row, (kind, methods) in zip(grid, panels.items(), strict=True):
        names = list(methods)
        for axes, (measure, heading) in zip(row, headings.items(), strict=True):
            for position, name in enumerate(names):
                summary = methods[name][measure]
                if summary is not None:
                    mean, error = summary
                    colour = COLOURS[_family(name)]
                    axes.errorbar(mean, position, xerr=error, fmt="o", color=colour, markersize=4, capsize=2)
            if measure in _TRUTH:
                axes.axvline(_TRUTH[measure], color=_GREY, linestyle="--", linewidth=1)
            if measure in _LOG:
                axes.set_xscale("log")
            axes.grid(axis="x", alpha=0.3)
            axes.set_xlabel(heading, fontsize=9)
        row[0].set_yticks(range(len(names)), names, fontsize=8)
        row[0].set_ylim(len(names) - 0.5, -0.5)
        row[0].set_title(kind.capitalize(), loc="left", fontsize=11)
    figure.suptitle("Methods against NUTS, mean ± 1 standard error over problems; dashed: the truth", fontsize=11)
    return figure


def rank_histograms(ranks: Mapping[tuple[str, str], Ranks]) -> Figure:
    """How often the truth had each rank among posterior draws, a panel for each posterior on trial.

    Grey lines are the entries of A, the coloured one their mean; the band holds 99 % of counts of a single entry of a
    right posterior.
    """
    columns = min(3, len(ranks))
    rows = -(-len(ranks) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    centres = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    for axes, ((kind, name), found) in zip(grid, ranks.items(), strict=False):
        number = len(found.values)
        entries = NUM_BINS * found.counts[:-1].numpy() / number  # the last quantity is no entry of A
        low, high = NUM_BINS * np.array(stats.binom.interval(0.99, number, 1 / NUM_BINS)) / number
        axes.axhspan(low, high, color=COLOURS[4], alpha=0.2, linewidth=0)
        for line in entries:
            axes.step(centres, line, where="mid", color=_GREY, linewidth=0.7, alpha=0.6)
        axes.step(centres, entries.mean(0), where="mid", color=COLOURS[1], linewidth=2)
        axes.set_title(f"{kind}, {name}\n{number} replications, p = {found.p_value:.2g}", fontsize=9)
        axes.set(xlim=(0, 1))
        axes.set_ylim(bottom=0)
    for axes in grid[len(ranks) :]:
        axes.set_axis_off()
    figure.supxlabel("rank of the true value among posterior draws, as a part of all draws", fontsize=10)
    figure.supylabel("frequency, relative to even", fontsize=10)
    figure.suptitle(
        "Calibration by simulation. Grey: entries of A; orange: their mean; band: 99 % if even", fontsize=11
    )
    return figure


def lemma_panels(lemmas: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Figure:
    """Output shift and relative largest curvature of the smoothed loss, both against eps; a line for each problem."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (kind, by_seed), colour in zip(lemmas.items(), COLOURS, strict=False):
        for position, found in enumerate(by_seed.values()):
            label = kind if position == 0 else ""
            shift, curvature = found["output_shift"], found["curvature"]
            style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1, "label": label}
            left.plot(shift["scales"], shift["shifts"], **style)
            ratios = [one["smoothed"] / one["original"] for one in curvature]
            errors = [one["standard_error"] / one["original"] for one in curvature]
            right.errorbar([one["scale"] for one in curvature], ratios, yerr=errors, capsize=2, **style)
    right.axhline(1, color=_GREY, linestyle="--", linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="eps", ylabel="mean |f(x; A) - f(x; mode)|")
    left.set_title("Output shift\n(Lemma 4)", fontsize=11)
    right.set(xscale="log", xlabel="eps", ylabel="smoothed / original")
    right.set_title("Largest eigenvalue of the Hessian\nat the mode (Lemmas 2, 8)", fontsize=11)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def _family(method: str) -> int:
    """Index of the colour: the methods of one objective and mixture share it."""
    families = ("elbo_dense", "elbo_sparse", "paper_dense", "paper_sparse")
    return next((index for index, family in enumerate(families) if method.startswith(family)), len(COLOURS) - 1)
