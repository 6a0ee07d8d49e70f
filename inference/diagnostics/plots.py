"""Pictures of inference data, the same with every release of ArviZ."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bayes_lora.errors import DataError
from bayes_lora.inference.diagnostics.arviz_bridge import InferenceData, Names, group, summary

_BINS = 20  # of a histogram of numbers


def plot_forest(
    data: InferenceData, var_names: Names = None, *, probability: float = 0.9, coords: Mapping[str, Any] | None = None
) -> Figure:
    """Each number's mean, and its highest-density intervals: of half of the draws (thick), of `probability` (thin).

    Args:
        data: what `to_inference_data` returned.
        var_names: variables of the posterior; None is all.
        probability: inside the thin interval.
        coords: coordinates to restrict it to, by dimension.
    """
    wide, half = (summary(data, var_names, probability=p, coords=coords) for p in (probability, 0.5))
    figure = Figure(figsize=(7, 1 + 0.25 * len(wide)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(wide))[::-1]
    axes.hlines(rows, wide["lower"], wide["upper"], linewidth=1)
    axes.hlines(rows, half["lower"], half["upper"], linewidth=3)
    axes.plot(wide["mean"], rows, "o", color="white", markeredgecolor="C0")
    axes.set_yticks(rows, wide.index)
    axes.set(xlabel=f"mean, and where 50 % and {probability:.0%} of the draws are", ylim=(-0.5, len(wide) - 0.5))
    return figure


def plot_ppc(data: InferenceData) -> Figure:
    """Posterior predictive check of the labels: those observed beside those drawn.

    Of classes, grades and words the share of each class; of several labels the share of the rows with each; of numbers
    a histogram for each output. Bars are the mean over draws, lines where 90 % of the draws are. `check_labels` tests
    the same.

    Raises:
        DataError: no group observed_data, or no labels drawn, as of a language model.
    """
    observed = group(data, "observed_data")["y"]
    predicted = group(data, "posterior_predictive")
    if "y" not in predicted:
        raise DataError("no labels were drawn: predictions of a language model keep too little. See check_surprise.")
    drawn = predicted["y"].stack(sample=("chain", "draw")).transpose("sample", *observed.dims)
    if observed.dtype.kind == "f":
        return _numbers(observed, drawn)
    if "label" in observed.dims:
        names = observed["label"].to_numpy()
        shares, of_observed = drawn.mean("example").to_numpy(), observed.mean("example").to_numpy()
    else:
        names = predicted["class"].to_numpy()
        classes = np.arange(len(names))
        shares, of_observed = (
            _shares(values.to_numpy().reshape(count, -1), classes)
            for values, count in ((drawn, drawn.sizes["sample"]), (observed, 1))
        )
        of_observed = of_observed[0]
    return _rates(names, shares, of_observed)


def _shares(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[Any]:
    """(sample, class), of labels (sample, place); those below 0 do not count."""
    counted = (labels >= 0).sum(1)
    return np.stack([(labels == c).sum(1) / counted for c in classes], axis=1)


def _rates(names: Iterable[Any], shares: NDArray[Any], observed: NDArray[Any]) -> Figure:
    """Shares (sample, name), and those observed (name,)."""
    lower, upper = np.quantile(shares, (0.05, 0.95), axis=0)
    places = np.arange(shares.shape[1])
    figure = Figure(figsize=(1.5 + 1.2 * len(places), 3.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(places, shares.mean(0), width=0.6, color="#cccccc", label="drawn, mean")
    axes.vlines(places, lower, upper, label="drawn, 90 % of the draws")
    axes.plot(places, observed, "D", color="C1", label="observed")
    axes.set_xticks(places, list(names))
    axes.set(ylabel="share", ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


def _numbers(observed: xr.DataArray, drawn: xr.DataArray) -> Figure:
    """Numbers observed (example[, output]), and drawn (sample, example[, output])."""
    values = observed.to_numpy().reshape(observed.sizes["example"], -1)
    replicates = drawn.to_numpy().reshape(drawn.sizes["sample"], *values.shape)
    names = observed["output"].to_numpy() if "output" in observed.dims else [None]
    figure = Figure(figsize=(1.5 + 4 * len(names), 3.5), layout="constrained")
    for axes, name, own, of_draws in zip(
        figure.subplots(1, len(names), squeeze=False)[0], names, values.T, np.moveaxis(replicates, 2, 0), strict=True
    ):
        # The tails of a heavy-tailed noise would leave nothing to see of the labels.
        low, high = np.quantile(of_draws, (0.005, 0.995))
        edges = np.linspace(min(low, own.min()), max(high, own.max()), _BINS + 1)
        shares = np.stack([np.histogram(of, edges)[0] for of in of_draws]) / len(own)
        lower, upper = np.quantile(shares, (0.05, 0.95), axis=0)
        centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
        axes.bar(centres, shares.mean(0), width=0.9 * width, color="#cccccc", label="drawn, mean")
        axes.vlines(centres, lower, upper, label="drawn, 90 % of the draws")
        axes.plot(centres, np.histogram(own, edges)[0] / len(own), "D", color="C1", markersize=4, label="observed")
        axes.set(
            xlabel="label" if name is None else f"label, output {name}", ylabel="share of the rows", ylim=(0, None)
        )
    shown = axes.get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
