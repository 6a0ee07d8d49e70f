"""Pictures of a posterior: where its uncertainty comes from, what was learned, and whether its predictions fit."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from bayes_lora.experiments.reports.plots import COLOURS, short_name
from bayes_lora.inference.diagnostics import PredictiveCheck

_PANEL_COLUMNS = 6
_DIVERGING = "RdBu_r"
_SURPRISE_BINS = 10
_FEW_LABELS = 8  # up to which they have room


def uncertainty_map(names: Sequence[str], ablated: Tensor, alone: Tensor) -> Figure:
    """Mutual information lost without each adapter's noise, and left with its noise alone, (adapter,), nats."""
    figure, (left, right) = _rows_of_adapters(names, 2)
    positions = range(len(names))
    left.barh(positions, ablated.numpy(), color=COLOURS[0])
    left.axvline(0, color="#767676", linewidth=1)
    left.set(xlabel="lost when it is ablated (nats)", title="Without this part's noise")
    right.barh(positions, alone.numpy(), color=COLOURS[1])
    right.set(xlabel="left when all others are (nats)", title="This part's noise alone")
    for axes in (left, right):
        axes.locator_params(axis="x", nbins=4)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    figure.suptitle("Mutual information of the predictions, part by part", fontsize=11)
    return figure


def information(names: Sequence[str], terms: Mapping[str, Tensor]) -> Figure:
    """KL from prior to posterior of every adapter, each term's part (adapter,), nats, on a logarithmic axis.

    A point, as AutoDelta's posterior is, has no KL; its terms may all be below 0, and the axis is then linear.
    """
    figure, (axes,) = _rows_of_adapters(names, 1)
    height = 0.8 / len(terms)
    for place, ((term, values), colour) in enumerate(zip(terms.items(), COLOURS, strict=False)):
        offsets = np.arange(len(names)) + (place - (len(terms) - 1) / 2) * height
        axes.barh(offsets, values.numpy(), height=height, label=term, color=colour)
    positive = any(bool((values > 0).any()) for values in terms.values())
    axes.set(
        xscale="log" if positive else "linear",
        xlabel="KL from prior to posterior (nats)",
        title="What each adapter learned",
    )
    figure.legend(loc="outside lower center", ncols=len(terms), fontsize=8, frameon=False)
    return figure


def spreads(names: Sequence[str], draws: Tensor, xlabel: str, title: str) -> Figure:
    """Median and central 90 % of a quantity over posterior draws (draw, adapter), for every adapter."""
    figure, (axes,) = _rows_of_adapters(names, 1)
    low, middle, high = np.quantile(draws.numpy(), (0.05, 0.5, 0.95), axis=0)
    positions = np.arange(len(names))
    axes.errorbar(middle, positions, xerr=(middle - low, high - middle), fmt="o", color=COLOURS[0], capsize=2)
    axes.set(xlabel=xlabel, title=title, xlim=(0, None))
    return figure


def covariances(names: Sequence[str], means: Tensor, title: str) -> Figure:
    """A panel for each adapter's (rank, rank) matrix, means (adapter, rank, rank), under one scale of colours."""
    columns = min(_PANEL_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.6 * columns + 1.2, 1.75 * rows + 0.6), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    largest = float(means.abs().max())
    norm = Normalize(-largest, largest)
    for axes, name, matrix in zip(grid, names, means.numpy(), strict=False):
        axes.imshow(matrix, cmap=_DIVERGING, norm=norm)
        axes.set_title(short_name(name), fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    figure.colorbar(ScalarMappable(norm, _DIVERGING), ax=grid.tolist(), label="entry of the matrix", shrink=0.6)
    figure.suptitle(title, fontsize=11)
    return figure


def integral_transforms(values: Tensor) -> Figure:
    """Histogram of probability integral transforms (example,), flat where predictions are calibrated."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    bins = 10
    axes.hist(values.numpy(), bins=np.linspace(0, 1, bins + 1).tolist(), color=COLOURS[0], edgecolor="white")
    expected = len(values) / bins
    spread = 1.96 * np.sqrt(expected * (1 - 1 / bins))
    axes.axhline(expected, color="#767676", linestyle="--", linewidth=1, label="uniform")
    axes.axhspan(expected - spread, expected + spread, color="#767676", alpha=0.2, label="95 % of bins, if uniform")
    axes.set(xlabel="probability integral transform", ylabel="labels", xlim=(0, 1), title="Ranks of the labels")
    axes.legend(frameon=False, fontsize=8)
    return figure


def surprise(tokens: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Mean surprise against entropy in bins of as many tokens each, for named (entropy, surprise) of tokens, nats.

    Args:
        tokens: (token,) each. Bars are one standard error of the mean.
    """
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes, shown = figure.subplots(), []
    for (name, (entropies, surprises)), colour in zip(tokens.items(), COLOURS, strict=False):
        order = entropies.argsort(stable=True)
        bins = [part.numpy() for part in order.tensor_split(min(_SURPRISE_BINS, len(order)))]
        x, y = entropies.numpy(), surprises.numpy()
        centres = [x[part].mean() for part in bins]
        errors = [y[part].std() / np.sqrt(len(part)) for part in bins]
        shown += centres
        axes.errorbar(
            centres,
            [y[part].mean() for part in bins],
            errors,
            fmt="o-",
            color=colour,
            markersize=4,
            capsize=2,
            label=name,
        )
    ends = [min(shown), max(shown)]
    axes.plot(ends, ends, color="#767676", linestyle="--", linewidth=1, label="as predicted", zorder=0)
    axes.set(xlabel="entropy that tokens were predicted with (nats)", ylabel="mean of -ln p (nats)")
    axes.set_title(f"Surprise of the tokens, {_SURPRISE_BINS} bins")
    axes.legend(loc="upper left", frameon=False)
    return figure


def label_rates(names: Sequence[str], rates: PredictiveCheck, xlabel: str = "share of the rows (%)") -> Figure:
    """Observed share of each label beside the central 95 % of replicated labels; see `check_labels`."""
    height = 0.5 if len(names) <= _FEW_LABELS else 0.25
    figure = Figure(figsize=(6.8, 1.8 + height * len(names)), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(names))
    low, middle, high = (100 * np.asarray(values) for values in (rates.low, rates.replicated, rates.high))
    errors = (middle - low, high - middle)
    axes.errorbar(middle, positions, xerr=errors, fmt="o", color=COLOURS[0], capsize=3, label="replicated, 95 %")
    axes.plot(100 * np.asarray(rates.observed), positions, "x", color=COLOURS[1], markersize=9, label="observed")
    axes.set_yticks(positions, list(names))
    axes.set(xlabel=xlabel, ylim=(-0.6, len(names) - 0.4), title="Label rates")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure


def _rows_of_adapters(names: Sequence[str], panels: int) -> tuple[Figure, list[Axes]]:
    """Axes side by side, with a row for each adapter, the first at the top."""
    figure = Figure(figsize=(4.2 * panels + 1.6, 1.8 + 0.24 * len(names)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels, sharey=True))
    axes[0].set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure, list(axes)
