"""Pictures of a fit: loss terms, calibration, entropies, mixture weights, and the truth where it is known."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, product
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from bayes_lora.metrics.classification import (
    ECE_BINS,
    calibration_bins,
    expected_calibration_error,
    reliability_table,
)

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_WIDTH, _CHARACTER = 7.2, 0.07  # inches: of a figure, and at most of a small letter in its names
_LINES = ("-", "--", ":", "-.")
_TERM_NAMES = {
    "nll": "negative log-likelihood",
    "cooperative": "cooperative",
    "kl_dirichlet": "KL of pi (Dirichlet)",
    "kl_wishart": "KL of Sigma (Wishart)",
    "kl_normal": "KL of S (normal)",
}


def loss_terms(history: Sequence[Mapping[str, float]]) -> Figure:
    """Each term's contribution to the loss over the optimizer's steps."""
    figure, axes = _figure(7.2, 4.2)
    steps = [entry["step"] for entry in history]
    terms = [name for name in _TERM_NAMES if name in history[0]]
    for term, colour in zip(terms, COLOURS, strict=False):
        values = [entry[term] for entry in history]
        axes.plot(steps, values, label=_TERM_NAMES[term], color=colour, marker="o", markersize=2.5)
    # Densities of numbers may be above 1, and their logarithms of any sign.
    negative = any(entry[term] < 0 for entry in history for term in terms)
    axes.set_yscale("symlog" if negative else "log")
    axes.set(xlabel="optimizer step", ylabel="contribution to the loss (nats per observation)")
    axes.set_title("Loss terms, each as it is weighted in the loss")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def reliability(predictions: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Accuracy against confidence in equal-width bins, for named (probabilities, labels); bin counts below."""
    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#767676", linestyle="--", linewidth=1, label="perfectly calibrated")
    least = min(float(probs.max(-1).values.min()) for probs, _ in predictions.values())
    lowest, width = least, 1 / ECE_BINS
    for position, (name, style) in enumerate(_styles(predictions)):
        probs, labels = predictions[name]
        counts, confidence, accuracy = (values.numpy() for values in calibration_bins(probs, labels))
        filled = counts > 0
        lowest = min(lowest, float(accuracy[filled].min()))
        upper.plot(confidence[filled], accuracy[filled], label=name, marker="o", markersize=4, **style)
        offset = (position - (len(predictions) - 1) / 2) * width * 0.8 / len(predictions)
        centres = (np.arange(ECE_BINS) + 0.5) * width + offset
        lower.bar(centres, counts, width=width * 0.8 / len(predictions), color=style["color"])
    lower.set(xlabel="confidence (largest class probability)", ylabel="examples", xlim=(max(0.0, least - 0.03), 1.0))
    upper.set(
        ylabel="accuracy in the bin",
        ylim=(max(-0.02, lowest - 0.05), 1.02),
        title=f"Reliability on held-out rows, {ECE_BINS} bins",
    )
    upper.legend(loc="lower right", frameon=False)
    return figure


def quantile_calibration(levels: Sequence[float], shares: Mapping[str, Sequence[float]]) -> Figure:
    """The share of labels below each predicted quantile against its probability, for named shares (level,)."""
    figure, axes, columns = _with_names_below(shares, 4.8)
    axes.plot([0, 1], [0, 1], color="#767676", linestyle="--", linewidth=1, label="calibrated")
    for name, style in _styles(shares):
        axes.plot(levels, shares[name], label=name, marker="o", markersize=3, **style)
    axes.set(xlabel="probability of the quantile", ylabel="labels below the quantile", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Calibration of predicted quantiles on the evaluated rows")
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def reliability_panels(predictions: Mapping[str, Sequence[tuple[Tensor, Tensor]]]) -> Figure:
    """Accuracy against confidence, a panel for each of many names with the (probabilities, labels) of each seed.

    A point is of the rows of all seeds in its bin, and its area grows with their number. Its standard error counts a
    row once, since seeds are right and wrong about the same rows. The ECE is the mean over seeds.
    """
    columns = min(4, max(1, len(predictions)))
    rows = max(1, -(-len(predictions) // columns))
    figure = Figure(figsize=(2.9 * columns, 3.0 * rows + 0.5), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    least = min(float(probs.max(-1).values.min()) for of_seeds in predictions.values() for probs, _ in of_seeds)
    for position, (axes, (name, of_seeds)) in enumerate(zip(grid, predictions.items(), strict=False)):
        probs, labels = (torch.cat(parts) for parts in zip(*of_seeds, strict=True))
        table = [line for line in reliability_table(probs, labels) if line.count]
        confidence, accuracy = [line.confidence for line in table], [line.accuracy for line in table]
        axes.plot([0, 1], [0, 1], color="#767676", linestyle="--", linewidth=1)
        errors = [line.standard_error * math.sqrt(len(of_seeds)) for line in table]
        axes.errorbar(confidence, accuracy, yerr=errors, color=COLOURS[0], linewidth=1, capsize=2)
        sizes = [10 + 110 * line.count / len(labels) for line in table]
        axes.scatter(confidence, accuracy, s=sizes, color=COLOURS[0], zorder=3)
        error = 100 * math.fsum(expected_calibration_error(*one) for one in of_seeds) / len(of_seeds)
        axes.set_title(f"{wrapped(name)}\nECE {error:.1f} %", fontsize=9)
        axes.set(xlim=(max(0.0, least - 0.03), 1.02), ylim=(-0.02, 1.02))
        axes.tick_params(labelbottom=position + columns >= len(predictions))  # the lowest of its column
    for axes in grid[len(predictions) :]:
        axes.set_axis_off()
    figure.supxlabel("confidence (largest class probability)", fontsize=10)
    figure.supylabel("accuracy in the bin, ± 1 standard error", fontsize=10)
    figure.suptitle(f"Reliability on the evaluated rows, {ECE_BINS} bins", fontsize=11)
    return figure


def risk_coverage(curves: Mapping[str, tuple[Tensor, Tensor]], what: str = "rows") -> Figure:
    """Errors among the rows kept against how many are kept, for named (coverage, risk), (example,) each.

    As `uncertainty_metrics.risk_coverage_curve` gives them; for several seeds, average the risks.
    """
    figure, axes, columns = _with_names_below(curves, 4.2)
    for name, style in _styles(curves):
        coverage, risk = curves[name]
        axes.plot((100 * coverage).numpy(), (100 * risk).numpy(), label=name, linewidth=1.5, **style)
    kept, wrong = f"{what} kept, the most certain first (%)", f"wrong among the {what} kept (%)"
    axes.set(xlabel=kept, ylabel=wrong, xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.set_title("Risk and coverage on the evaluated rows")
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


class Shown(NamedTuple):
    """A difference in a picture: its interval over rows, its values under each seed, and its sign where it is sure."""

    estimate: float
    low: float
    high: float
    of_seeds: tuple[float, ...]
    sign: int


def differences(panels: Mapping[str, Mapping[str, Shown]], reference: str, better: Mapping[str, bool]) -> Figure:
    """Each method minus `reference`, a panel for each metric; ticks are the seeds.

    `better` says of each panel whether higher is better. What is not sure, of sign 0, is grey.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    beside = _CHARACTER * max(map(len, names))
    figure = Figure(figsize=(beside + 2.3 * len(panels), 1.4 + 0.26 * len(names)), layout="constrained")
    grid = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    kinds = {"better": (COLOURS[0], "o"), "worse": (COLOURS[1], "s"), "not sure": ("#767676", "D")}
    for axes, (title, panel) in zip(grid, panels.items(), strict=True):
        axes.axvline(0, color="#767676", linestyle="--", linewidth=1)
        for name, one in panel.items():
            kind = "not sure" if not one.sign else "better" if (one.sign > 0) == better[title] else "worse"
            colour, marker = kinds[kind]
            place = names.index(name)
            axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.5)
            axes.plot(one.estimate, place, marker, color=colour, markersize=4)
            if len(one.of_seeds) > 1:
                axes.plot(one.of_seeds, [place] * len(one.of_seeds), "|", color=colour, markersize=7)
        axes.set(title=title, xlabel="better \N{RIGHTWARDS ARROW}" if better[title] else "\N{LEFTWARDS ARROW} better")
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", alpha=0.2)
    grid[0].set_yticks(range(len(names)), names, fontsize=8)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(f"Minus {reference}: 95 % intervals over rows; a tick is a seed", fontsize=11)
    shown = [Line2D([], [], color=colour, marker=marker, markersize=4) for colour, marker in kinds.values()]
    figure.legend(shown, kinds, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def overview(panels: Mapping[str, Mapping[str, tuple[float, float]]], better: Mapping[str, bool]) -> Figure:
    """A panel for each metric: the mean of each method and its 95 % interval, half as wide as the second number says.

    Args:
        panels: by the metric's title and the method's name; the half width is NaN where there is one seed.
        better: whether more of a metric is better.
    """
    names = list(dict.fromkeys(name for values in panels.values() for name in values))
    figure = Figure(figsize=(3.2 * len(panels) + 2.2, 0.9 + 0.34 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, values), colour in zip(grid, panels.items(), COLOURS, strict=False):
        places = [names.index(name) for name in values]
        means, halves = np.array(list(values.values()), dtype=float).T
        axes.errorbar(means, places, xerr=np.nan_to_num(halves), fmt="o", color=colour, capsize=3, markersize=5)
        axes.grid(axis="x", color="#dddddd")
        axes.set(title=f"{title} ({'more' if better[title] else 'less'} is better)")
    grid[0].set_yticks(range(len(names)), [wrapped(name) for name in names], fontsize=9)
    grid[0].invert_yaxis()
    return figure


def entropies(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor], bound: float = math.log(2)) -> Figure:
    """Histograms of uncertainties (nats) of rows like the training rows and of others, one panel for each name."""
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(inside))), inside, strict=True):
        top = max(float(inside[name].max()), float(outside[name].max()), 1e-6)
        edges = np.linspace(0, bound if top > bound / 2 else 1.05 * top, 26)
        for label, values, colour in (
            ("in distribution", inside[name], COLOURS[0]),
            ("out of distribution", outside[name], COLOURS[1]),
        ):
            shares = np.full(len(values), 100 / len(values))
            axes.hist(values.numpy(), bins=edges, weights=shares, label=label, color=colour, alpha=0.6)
        axes.set(xlabel=f"{name} (nats)", ylabel="rows (%)", title=name.capitalize())
        axes.legend(frameon=False)
    return figure


def mixture_weights(concentration: Tensor, names: Sequence[str]) -> Figure:
    """E[pi_k] = alpha_k / sum alpha of every adapter, (adapter, component), with alpha's total on the right."""
    alpha = concentration.detach().cpu()
    weights = (alpha / alpha.sum(-1, keepdim=True)).numpy()
    height = 1.6 + 0.24 * len(names)
    figure = Figure(figsize=(8.4, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    image = left.imshow(weights, aspect="auto", cmap="viridis", vmin=0)
    figure.colorbar(image, ax=left, label="E[pi], mixture weight")
    left.set_xticks(range(weights.shape[1]), [str(k + 1) for k in range(weights.shape[1])])
    left.set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=8)
    left.set(xlabel="component k", title="Mean mixture weight")
    right.barh(range(len(names)), alpha.sum(-1).numpy(), color=COLOURS[0])
    right.set(xlabel="sum of alpha", title="Concentration")
    return figure


def truth_by_group(
    rows: Sequence[Mapping[str, object]], predictions: Mapping[str, Tensor], label_names: tuple[str, str]
) -> Figure:
    """Predicted probability of the second class against the true one, a box for each group and predictor."""
    figure, axes = _figure(9.4, 4.4)
    truths = np.array([row["true_prob"] for row in rows], dtype=float)
    levels = np.unique(truths)
    width = 0.8 / len(predictions)
    for position, ((name, probs), colour) in enumerate(zip(predictions.items(), COLOURS, strict=False)):
        offset = (position - (len(predictions) - 1) / 2) * width
        boxes = axes.boxplot(
            [probs[torch.from_numpy(truths == level), 1].numpy() for level in levels],
            positions=np.arange(len(levels)) + offset,
            widths=0.85 * width,
            patch_artist=True,
            showfliers=False,
            medianprops={"color": "black"},
            manage_ticks=False,
        )
        for box in boxes["boxes"]:
            box.set(facecolor=colour, alpha=0.7)
        boxes["boxes"][0].set_label(name)
    for position, level in enumerate(levels):
        truth = "true probability" if position == 0 else ""
        axes.hlines(level, position - 0.48, position + 0.48, color="black", linestyle="--", linewidth=1.2, label=truth)
    axes.set_xticks(range(len(levels)), [f"{level:.2f}" for level in levels])
    axes.set(xlabel=f"true P({label_names[1]} | pair)", ylabel=f"predicted P({label_names[1]} | pair)", ylim=(0, 1))
    axes.set_title("Predicted against true probability")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


class _Style(TypedDict):
    color: str
    linestyle: str


def _styles(names: Iterable[str]) -> Iterator[tuple[str, _Style]]:
    """Each name with a colour and kind of line: all colours solid first, then dashed, and so on round."""
    pairs = cycle(product(_LINES, COLOURS))
    return ((name, _Style(color=colour, linestyle=line)) for name, (line, colour) in zip(names, pairs, strict=False))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _with_names_below(names: Iterable[str], height: float) -> tuple[Figure, Axes, int]:
    """Figure, axes and columns of a legend below them: beside the axes, names of methods would take half of the width.

    In two columns where those are wide enough for every name, else in one, and the figure as wide as that.
    """
    known = list(names)
    widest = 0.8 + _CHARACTER * max(map(len, known), default=0)
    columns = 2 if 2 * widest <= _WIDTH else 1
    lines = -(-len(known) // columns)
    return *_figure(max(_WIDTH, columns * widest), height + 0.2 * lines), columns


def wrapped(name: str, width: int = 30) -> str:
    """A method's name on as many lines as it needs, broken before an option or a suffix."""
    lines = [""]
    for part in re.split(r"(?<=[\[,])|(?=\+)", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def short_name(name: str) -> str:
    """A path's numbers and last word: bert.encoder.layer.0.attention.self.query -> 0.query; of a layer, layer.0."""
    parts = name.split(".")
    if parts[-1].isdigit():
        return ".".join(parts[-2:])
    return ".".join(part for part in parts if part.isdigit() or part == parts[-1])
