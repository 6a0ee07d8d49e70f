"""Pictures of inference data, the same with every release of ArviZ."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bayes_lora.inference.diagnostics.arviz_bridge import InferenceData, Names, group, summary


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
    """Posterior predictive check of the labels: the share of each class in what was observed and in what is drawn.

    Bars are the mean over draws, lines where 90 % of the draws are. `check_label_rates` tests the same.

    Raises:
        DataError: no group observed_data.
    """
    observed = group(data, "observed_data")["y"].to_numpy()  # (example,)
    predicted = group(data, "posterior_predictive")
    names = predicted["class"].to_numpy()
    labels = predicted["y"].stack(sample=("chain", "draw")).transpose("sample", "example").to_numpy()
    classes = np.arange(len(names))
    shares = np.stack([(labels == c).mean(1) for c in classes])  # (class, sample)
    lower, upper = np.quantile(shares, (0.05, 0.95), axis=1)
    figure = Figure(figsize=(1.5 + 1.2 * len(names), 3.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(classes, shares.mean(1), width=0.6, color="#cccccc", label="drawn, mean")
    axes.vlines(classes, lower, upper, label="drawn, 90 % of the draws")
    axes.plot(classes, [(observed == c).mean() for c in classes], "D", color="C1", label="observed")
    axes.set_xticks(classes, names)
    axes.set(ylabel="share of the rows", ylim=(0, 1))
    axes.legend(frameon=False)
    return figure
