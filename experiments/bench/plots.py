"""How cost grows with each size, as pictures."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_lora.experiments.bench.results import Record, Results
from bayes_lora.experiments.bench.suites import SAMPLING

# Okabe and Ito's colours, which colour-blind readers can tell apart: one for each way, in every panel;
# DoRA's panel is its own.
_COLOURS = {
    "lora": "#000000",
    "lora_fit": "#767676",
    "peft_monteclora": "#D55E00",
    "peft_monteclora_n8": "#E69F00",
    "paper": "#0072B2",
    "paper_explicit": "#56B4E9",
    "elbo": "#009E73",
    "paper_svi": "#CC79A7",
    "paper_fit": "#332288",
    "full": "#999933",
    "dora": "#767676",
    "dora_paper": "#0072B2",
    "dora_elbo": "#009E73",
    SAMPLING: "#0072B2",
}
_FINE = (0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4)
_COARSE = (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100)
_AGAINST_LORA = "a step, in steps of PEFT LoRA"


def growth(results: Results) -> Figure:
    """A panel for each suite that was measured; bars are the intervals of the medians."""
    panels: list[Callable[[Axes], None]] = []
    for suite, size, label in (
        ("steps", _tokens, "tokens in a step"),
        ("components", _named("components"), "N, components"),
        ("rank", _named("rank"), "rank"),
        ("adapters", _named("adapters"), "adapters"),
        ("dora", _tokens, "tokens in a step of DoRA"),
        ("gpu", _tokens, "tokens in a step, RoBERTa-base's shape on a GPU"),
    ):
        records = [r for r in results.of(suite, "step") if "lora" in r.ratios]
        if records:
            panels.append(partial(_ratios, records=records, size=size, label=label))
    alone = [record for record in results.of("adapters") if record.contender == SAMPLING]
    if alone:
        panels.append(partial(_sampling, results=results, records=alone))
    peaks = results.of("memory", "process_peak")
    if peaks:
        panels.append(partial(_bars, records=peaks))
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(5.0 * columns, 4.8 * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _tokens(record: Record) -> float:
    return float(record.case["batch"]) * float(record.case["tokens"])


def _named(name: str) -> Callable[[Record], float]:
    return lambda record: float(record.case[name])


def way(record: Record) -> str:
    """The contender without its N: in a suite over N, all belong to one line."""
    return record.contender.rpartition("_n")[0] if record.suite == "components" else record.contender


def _ratios(axes: Axes, records: Sequence[Record], size: Callable[[Record], float], label: str) -> None:
    """Ratios to PEFT LoRA over a size; where batches differ beside it, the later ones are dashed."""
    batches = list(dict.fromkeys(_tokens(r) for r in records)) if size is not _tokens else [None]
    for name in dict.fromkeys(way(record) for record in records):
        for batch, style in zip(batches, ("-", "--", ":", "-."), strict=False):
            line = [r for r in records if way(r) == name and batch in (None, _tokens(r))]
            described = line[0].label.partition(", N = ")[0] if line[0].suite == "components" else line[0].label
            if batch is not None and len(batches) > 1:
                described += f", {batch:.0f} tokens"
            ratios = [record.ratios["lora"] for record in line]
            medians = [ratio.median for ratio in ratios]
            spans = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
            axes.errorbar(
                [size(record) for record in line],
                medians,
                yerr=spans,
                label=described,
                color=_COLOURS.get(name),
                linestyle=style,
                marker="o",
                markersize=3,
                capsize=2,
            )
    axes.axhline(1, color="black", linewidth=0.8)
    shapes = {(record.case["batch"], record.case["tokens"]) for record in records}
    if size is not _tokens and len(shapes) == 1:
        label += ", at {} x {} tokens".format(*shapes.pop())
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel=_AGAINST_LORA)
    sizes = sorted({size(record) for record in records})
    axes.set_xticks(sizes, [f"{value:.0f}" for value in sizes])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    marks = _FINE if high < 3 * low else _COARSE
    ticks = [tick for tick in marks if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    _legend(axes)


def _sampling(axes: Axes, results: Results, records: Sequence[Record]) -> None:
    counts = [float(record.case["adapters"]) for record in records]
    values = [record.value for record in records]
    spans = [[1e3 * (v.median - v.low) for v in values], [1e3 * (v.high - v.median) for v in values]]
    medians = [1e3 * v.median for v in values]
    points = axes.errorbar(counts, medians, yerr=spans, linestyle="", marker="o", markersize=4, capsize=2)
    points.set_label("measured")
    line = results.lines[SAMPLING]
    ends = np.array([0.0, max(counts)])
    axes.plot(ends, 1e3 * (line.fixed + line.slope * ends), color="black", linewidth=1, label="least squares")
    axes.set(xlabel="adapters", ylabel="sampling and KL, forward and backward (ms)", ylim=(0, None), xlim=(0, None))
    _legend(axes)


def _bars(axes: Axes, records: Sequence[Record]) -> None:
    positions = range(len(records))
    values = [record.value.median / 1e6 for record in records]
    axes.barh(positions, values, color=[_COLOURS.get(record.contender) for record in records])
    axes.set_yticks(positions, [record.label for record in records], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="peak memory of the process (MB)")
    axes.set_title(records[0].described_case(), fontsize="medium")


def _legend(axes: Axes) -> None:
    """Below the picture, where it hides nothing."""
    axes.legend(frameon=False, fontsize=7, ncols=2, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
