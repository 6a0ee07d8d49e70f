"""Figures of a finished sweep: distributions over cells, each axis of the grid, and how losses fell."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bayes_lora.experiments.compare.fitting import HISTORY_FILE, POINT
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.reports.page import png
from bayes_lora.experiments.reports.plots import COLOURS, wrapped
from bayes_lora.experiments.sweep.grids import HIGHER_IS_BETTER, JUDGED, MethodGrid, grids_of
from bayes_lora.experiments.sweep.results import Finished
from bayes_lora.experiments.sweep.settings import at_point
from bayes_lora.experiments.sweep.working import CELLS
from bayes_lora.files import write_file
from bayes_lora.metrics.titles import title_of

_LINES = ("-", "--", ":")
_MARKERS = ("o", "s", "^", "D")


def write_figures(finished: Finished) -> list[Path]:
    """Draw what there is into the sweep's folder; what was written."""
    written = []
    for task, grids in grids_of(finished).items():
        figures = {f"distribution-{task}.png": distributions(grids)}
        for axis in finished.axes:
            found = along(axis, finished.about["grid"][axis], grids)
            if found is not None:
                figures[f"along-{axis}-{task}.png"] = found
        curves = loss_curves(finished, task)
        if curves is not None:
            figures[f"loss-{task}.png"] = curves
        for name, figure in figures.items():
            write_file(finished.folder / name, png(figure))
            written.append(finished.folder / name)
    return written


def distributions(grids: Mapping[str, MethodGrid]) -> Figure:
    """A panel for each metric: every cell of each method as a point, on a box from quartile to quartile."""
    metrics, names = _metrics(grids), [wrapped(name) for name in grids]
    row = max(0.42, 0.16 * max(1 + name.count("\n") for name in names))  # inches, for the longest name
    figure = Figure(figsize=(3.4 * len(metrics) + 2.4, 1.0 + row * len(grids)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    generator = np.random.default_rng(0)  # of where points lie beside one another
    for axes, metric, colour in zip(panels, metrics, COLOURS, strict=False):
        for place, grid in enumerate(grids.values()):
            values = _factor(metric) * grid.values(metric)
            axes.boxplot(
                values,
                positions=[place],
                orientation="horizontal",
                widths=0.6,
                showfliers=False,
                manage_ticks=False,
                medianprops={"color": "black"},
                boxprops={"color": "#767676"},
                whiskerprops={"color": "#767676"},
                capprops={"color": "#767676"},
            )
            beside = place + generator.uniform(-0.18, 0.18, len(values))
            axes.plot(values, beside, "o", color=colour, markersize=3.5, alpha=0.7)
        axes.set(title=f"{title_of(metric).head} ({'more' if HIGHER_IS_BETTER[metric] else 'less'} is better)")
        axes.grid(axis="x", alpha=0.3)
        if metric == "nll" and _is_wide([grid.values(metric) for grid in grids.values()]):
            axes.set_xscale("log")
    panels[0].set_yticks(range(len(grids)), names, fontsize=8)
    panels[0].set_ylim(len(grids) - 0.5, -0.5)
    return figure


def along(axis: str, values: Sequence[object], grids: Mapping[str, MethodGrid]) -> Figure | None:
    """How each metric moves along one axis: the median over all else, from the lowest to the highest cell."""
    moving = {name: grid for name, grid in grids.items() if any(axis in row.point for row in grid.rows)}
    if not moving or len(values) < 2:
        return None
    metrics = _metrics(moving)
    height = 3.2 + _legend_height(moving)
    figure = Figure(figsize=(max(4.0 * len(metrics), 6.5), height), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for index, (name, grid) in enumerate(moving.items()):
            found = {
                place: [
                    _factor(metric) * row.metrics[metric]
                    for row in grid.by_place.values()
                    if axis in row.point and row.point[axis] == value
                ]
                for place, value in enumerate(values)
            }
            known = [place for place, of in found.items() if of]
            middle = np.array([np.median(found[place]) for place in known])
            low, high = (np.array([end(found[place]) for place in known]) for end in (min, max))
            shift = 0.3 * (index / max(1, len(moving) - 1) - 0.5) if len(moving) > 1 else 0.0
            axes.errorbar(
                np.array(known) + shift,
                middle,
                [middle - low, high - middle],
                label=_in_legend(name),
                color=COLOURS[index % len(COLOURS)],
                linestyle=_LINES[index // len(COLOURS) % len(_LINES)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                linewidth=1.2,
                capsize=2,
            )
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set(xlabel=axis, title=title_of(metric).head)
        axes.grid(axis="y", alpha=0.3)
        if metric == "nll" and _is_wide([grid.values(metric) for grid in moving.values()]):
            axes.set_yscale("log")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle("median over all else, from the lowest to the highest cell", fontsize=10)
    return figure


def loss_curves(finished: Finished, task: str) -> Figure | None:
    """The training loss of each training that left its history: a thin line for a cell, a thick one for the median."""
    names = _trained_by(finished)
    found: dict[str, list[tuple[list[float], list[float]]]] = {name: [] for name in names.values()}
    for path in sorted((finished.folder / CELLS / task).rglob(HISTORY_FILE)):
        entries = json.loads(path.read_text(encoding="utf-8"))
        # What the classes cost; the KLs of a posterior are no part of what others have.
        points = [(entry["step"], entry.get("nll", entry["loss"])) for entry in entries]
        if len(points) > 1:
            training = path.relative_to(finished.folder / CELLS / task).parts[-3]
            found.setdefault(names.get(training, training), []).append(tuple(map(list, zip(*points, strict=True))))  # type: ignore[arg-type]
    found = {name: curves for name, curves in found.items() if curves}
    if not found:
        return None
    figure = Figure(figsize=(7.0, 3.6 + _legend_height(found)), layout="constrained")
    axes = figure.subplots()
    for index, (name, curves) in enumerate(found.items()):
        colour = COLOURS[index % len(COLOURS)]
        for steps, losses in curves:
            axes.plot(steps, losses, color=colour, linewidth=0.5, alpha=0.4)
        shared = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
        lines = [dict(zip(steps, losses, strict=True)) for steps, losses in curves]
        axes.plot(
            shared, [np.median([line[step] for line in lines]) for step in shared], color=colour, label=_in_legend(name)
        )
    axes.set(
        xlabel="step", ylabel="training NLL (nats)", title=f"{task}: a thin line is a cell, a thick one the median"
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _trained_by(finished: Finished) -> dict[str, str]:
    """The method that each training is of, by the training's folder; of several that share one, the first."""
    names = {POINT: POINT}
    for label in dict.fromkeys((*finished.about.get("methods", ()), *(row.method for row in finished.rows))):
        (method,) = parse_methods(label)
        for row in finished.rows:
            if row.method == label:
                names.setdefault(at_point(method, row.point).untempered.training.folder, label)
    return names


def _in_legend(name: str) -> str:
    """On lines of which two fit beside each other."""
    return wrapped(name, 44)


def _legend_height(names: Iterable[str]) -> float:
    """In inches, of a legend of two columns."""
    return 0.1 * sum(1.4 + _in_legend(name).count("\n") for name in names) + 0.2


def _metrics(grids: Mapping[str, MethodGrid]) -> list[str]:
    """The first two that every method has."""
    return [metric for metric in JUDGED if all(grid.has(metric) for grid in grids.values())][:2]


def _factor(metric: str) -> float:
    return 100.0 if title_of(metric).percent else 1.0


def _is_wide(values: Sequence[np.ndarray]) -> bool:
    """Whether one cell would press all others to the side."""
    known = np.concatenate(values)
    return bool(known.min() > 0 and known.max() > 10 * np.median(known))
