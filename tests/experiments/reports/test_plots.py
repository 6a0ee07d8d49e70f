"""Pictures, by what is drawn: every number given is there, and every axis says what it is and in which unit."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch
from numpy.testing import assert_allclose
from torch import Tensor

from bayes_lora.experiments.reports import plots
from bayes_lora.metrics.classification import calibration_bins, expected_calibration_error, reliability_table

# Six rows of two classes; confidences in three different bins.
PROBS = torch.tensor([[0.95, 0.05], [0.96, 0.04], [0.18, 0.82], [0.17, 0.83], [0.45, 0.55], [0.94, 0.06]])
LABELS = torch.tensor([0, 1, 1, 1, 0, 0])


def legend(axes: Axes) -> list[str]:
    shown = axes.get_legend()
    assert shown is not None
    return [text.get_text() for text in shown.get_texts()]


def heights(container: BarContainer) -> list[float]:
    return [bar.get_height() for bar in container.patches]


def bars(axes: Axes) -> list[BarContainer]:
    return [container for container in axes.containers if isinstance(container, BarContainer)]


def test_loss_terms() -> None:
    history = [
        {"step": 10 * step, "loss": 3.0 / step, "nll": 2.0 / step, "cooperative": 1.0 / step, "kl_normal": 0.1}
        for step in (1, 2, 3)
    ]
    (axes,) = plots.loss_terms(history).axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert list(drawn) == ["negative log-likelihood", "cooperative", "KL of S (normal)"] == legend(axes)
    for label, term in (
        ("negative log-likelihood", "nll"),
        ("cooperative", "cooperative"),
        ("KL of S (normal)", "kl_normal"),
    ):
        assert_allclose(np.asarray(drawn[label]), [[entry["step"], entry[term]] for entry in history])
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "optimizer step"
    assert axes.get_ylabel() == "contribution to the loss (nats per observation)"


def test_loss_terms_below_0_are_seen() -> None:
    """A density may be above 1."""
    history = [{"step": step, "loss": 0.0, "nll": 1.0 - step, "kl_normal": 0.1} for step in (1, 2, 3)]
    (axes,) = plots.loss_terms(history).axes
    assert axes.get_yscale() == "symlog"
    low, high = axes.get_ylim()
    assert low < -2 < 0.1 < high


def test_reliability() -> None:
    other = PROBS.flip(-1)
    upper, lower = plots.reliability({"one": (PROBS, LABELS), "two": (other, LABELS)}).axes
    assert legend(upper) == ["perfectly calibrated", "one", "two"]
    diagonal, *curves = upper.get_lines()
    assert_allclose(np.asarray(diagonal.get_xydata()), [[0, 0], [1, 1]])
    for probs, curve, container in zip((PROBS, other), curves, bars(lower), strict=True):
        counts, confidence, accuracy = calibration_bins(probs, LABELS)
        filled = counts > 0
        assert filled.sum() == 3
        assert_allclose(np.asarray(curve.get_xydata()), torch.stack([confidence, accuracy], -1)[filled])
        assert_allclose(heights(container), counts)
        # Each bar stands within its bin.
        starts = [bar.get_x() for bar in container.patches]
        assert all(k / 15 <= start < (k + 1) / 15 for k, start in enumerate(starts))
    assert upper.get_ylabel() == "accuracy in the bin"
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("confidence (largest class probability)", "examples")
    left, right = lower.get_xlim()
    assert left <= 0.55
    assert right == 1.0
    # Nothing is outside of what is shown.
    bottom, top = upper.get_ylim()
    assert all(bottom <= y <= top for curve in curves for y in np.asarray(curve.get_ydata(), dtype=float))


def test_reliability_panels() -> None:
    labels = LABELS.flip(0)
    figure = plots.reliability_panels({"one": [(PROBS, LABELS)], "two": [(PROBS, labels)]})
    assert (figure.get_supxlabel(), figure.get_suptitle()) == (
        "confidence (largest class probability)",
        "Reliability on the evaluated rows, 15 bins",
    )
    assert figure.get_supylabel() == "accuracy in the bin, ± 1 standard error"
    # Of six rows: .95, .96 and .94, one wrong; .82 and .83, right; .55, wrong.
    error = (3 * (0.95 - 2 / 3) + 2 * (1 - 0.825) + 0.55) / 6
    assert figure.axes[0].get_title() == f"one\nECE {100 * error:.1f} %"
    for axes, truth in zip(figure.axes, (LABELS, labels), strict=True):
        table = [row for row in reliability_table(PROBS, truth) if row.count]
        points = [[row.confidence, row.accuracy] for row in table]
        (bars_of,) = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
        line, _, (sticks,) = bars_of.lines
        assert line is not None
        assert_allclose(np.asarray(line.get_xydata()), points)
        heights = [np.ptp(np.asarray(stick)[:, 1]) for stick in sticks.get_segments()]
        assert_allclose(heights, [2 * row.standard_error for row in table], atol=1e-12)
        (dots,) = [found for found in axes.collections if isinstance(found, PathCollection)]
        assert_allclose(np.asarray(dots.get_offsets()), points)
        areas = np.asarray(dots.get_sizes())
        assert np.argmax(areas) == np.argmax([row.count for row in table])
        left, right = axes.get_xlim()
        assert all(left < row.confidence < right for row in table)


def test_seeds_in_a_reliability_panel_are_the_same_rows() -> None:
    once, twice = (plots.reliability_panels({"one": [(PROBS, LABELS)] * seeds}) for seeds in (1, 2))
    assert once.axes[0].get_title() == twice.axes[0].get_title()
    (of_one,), (of_two,) = (
        [found for found in figure.axes[0].containers if isinstance(found, ErrorbarContainer)]
        for figure in (once, twice)
    )
    for first, second in zip(of_one.lines[2][0].get_segments(), of_two.lines[2][0].get_segments(), strict=True):
        assert_allclose(np.asarray(first), np.asarray(second))
    # Seeds that err in opposite ways are not calibrated, though their rows together may be.
    flipped = plots.reliability_panels({"one": [(PROBS, PROBS.argmax(-1)), (PROBS, 1 - PROBS.argmax(-1))]})
    errors = [expected_calibration_error(PROBS, labels) for labels in (PROBS.argmax(-1), 1 - PROBS.argmax(-1))]
    assert flipped.axes[0].get_title() == f"one\nECE {50 * sum(errors):.1f} %"


def test_reliability_panels_leave_no_empty_frames() -> None:
    figure = plots.reliability_panels({str(k): [(PROBS, LABELS)] for k in range(9)})
    assert [axes.axison for axes in figure.axes] == [True] * 9 + [False] * 3
    # The lowest panel of each column says what its axis is.
    labelled = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes[:9]]
    assert labelled == [False] * 5 + [True] * 4


def test_risk_coverage() -> None:
    coverage = torch.arange(1, 5, dtype=torch.double) / 4
    risks = {"one": torch.tensor([0.0, 0.0, 1 / 3, 1 / 4]), "two": torch.tensor([1.0, 0.5, 1 / 3, 0.5])}
    figure = plots.risk_coverage({name: (coverage, risk) for name, risk in risks.items()})
    (axes,), (below,) = figure.axes, figure.legends
    assert [text.get_text() for text in below.get_texts()] == list(risks)
    for line, risk in zip(axes.get_lines(), risks.values(), strict=True):
        assert_allclose(np.asarray(line.get_xydata()), 100 * torch.stack([coverage, risk], -1), rtol=1e-6)
    assert axes.get_xlabel() == "rows kept, the most certain first (%)"
    assert axes.get_ylabel() == "wrong among the rows kept (%)"
    assert axes.get_xlim() == (0, 100)
    bottom, top = axes.get_ylim()
    assert bottom == 0
    assert top >= 100


def test_differences() -> None:
    panels = {
        "NLL": {"one": plots.Shown(-0.2, -0.3, -0.1, (-0.2,), -1), "two": plots.Shown(0.1, -0.1, 0.3, (0.1,), 0)},
        "accuracy %": {
            "two": plots.Shown(-2.0, -3.0, -1.0, (-2.0,), -1),
            "three": plots.Shown(2.0, 1.0, 3.0, (2.0,), 1),
        },
    }
    figure = plots.differences(panels, "map", {"NLL": False, "accuracy %": True})
    (below,) = figure.legends
    kinds = {line.get_color(): text.get_text() for line, text in zip(below.get_lines(), below.get_texts(), strict=True)}
    expected = {
        "NLL": {"one": "better", "two": "not sure"},
        "accuracy %": {"two": "worse", "three": "better"},
    }
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["one", "two", "three"]
    for axes in figure.axes:
        title = axes.get_title()
        _, *drawn = axes.get_lines()
        for line, point, (name, (estimate, low, high, _, _)) in zip(
            drawn[::2], drawn[1::2], panels[title].items(), strict=True
        ):
            assert_allclose(np.asarray(line.get_xydata()), [[low, names.index(name)], [high, names.index(name)]])
            assert_allclose(np.asarray(point.get_xydata()), [[estimate, names.index(name)]])
            assert kinds[line.get_color()] == kinds[point.get_color()] == expected[title][name]
    assert "map" in figure.get_suptitle()


def test_seeds_of_a_difference_are_ticks() -> None:
    shown = plots.Shown(0.2, 0.1, 0.3, (0.15, 0.2, 0.25), 1)
    (axes,) = plots.differences({"NLL": {"one": shown}}, "map", {"NLL": False}).axes
    *_, ticks = axes.get_lines()
    assert_allclose(np.asarray(ticks.get_xydata()), [[0.15, 0], [0.2, 0], [0.25, 0]])
    assert ticks.get_marker() == "|"


@pytest.mark.parametrize("figure_of", [plots.reliability, plots.risk_coverage])
def test_every_one_of_many_methods_is_drawn_and_told_apart(
    figure_of: Callable[[dict[str, tuple[Tensor, Tensor]]], Figure],
) -> None:
    given = (PROBS, LABELS) if figure_of is plots.reliability else (torch.ones(1), torch.zeros(1))
    names = [f"method {k}" for k in range(20)]
    axes = figure_of(dict.fromkeys(names, given)).axes[0]
    lines = [line for line in axes.get_lines() if line.get_label() in names]
    assert [line.get_label() for line in lines] == names
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


@pytest.mark.parametrize("scale", [0.6, 0.01, 0.0])
def test_entropies(scale: float) -> None:
    inside = {"total entropy": torch.linspace(0, 1, 7) * scale, "mutual information": torch.linspace(0, 0.1, 7) * scale}
    outside = {"total entropy": torch.full((3,), scale), "mutual information": torch.linspace(0, 1, 3) * scale}
    panels = plots.entropies(inside, outside).axes
    assert [panel.get_xlabel() for panel in panels] == ["total entropy (nats)", "mutual information (nats)"]
    for panel, name in zip(panels, inside, strict=True):
        assert panel.get_ylabel() == "rows (%)"
        assert legend(panel) == ["in distribution", "out of distribution"]
        for container, values in zip(bars(panel), (inside[name], outside[name]), strict=True):
            assert sum(heights(container)) == pytest.approx(100)
            # The highest value is in the last bar that has a height.
            (last,) = [bar for bar in container.patches if bar.get_height() > 0][-1:]
            assert last.get_x() - 1e-6 <= float(values.max()) <= last.get_x() + last.get_width() + 1e-6
        assert panel.get_xlim()[1] <= 1.1 * math.log(2)


def test_mixture_weights() -> None:
    concentration = torch.tensor([[1.0, 3.0], [2.0, 2.0], [8.0, 2.0]])
    names = [
        f"bert.encoder.layer.{layer}.attention.self.{name}" for layer, name in ((0, "query"), (0, "key"), (1, "key"))
    ]
    left, right, bar = plots.mixture_weights(concentration.requires_grad_(), names).axes
    (image,) = [artist for artist in left.get_children() if isinstance(artist, AxesImage)]
    assert_allclose(np.asarray(image.get_array()), [[0.25, 0.75], [0.5, 0.5], [0.8, 0.2]], rtol=1e-6)
    assert [label.get_text() for label in left.get_yticklabels()] == ["0.query", "0.key", "1.key"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2"]
    (sums,) = bars(right)
    assert_allclose([patch.get_width() for patch in sums.patches], [4, 4, 10])
    assert (left.get_xlabel(), right.get_xlabel()) == ("component k", "sum of alpha")
    assert bar.get_ylabel() == "E[pi], mixture weight"


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    first, third = np.quantile(np.array(values), [0.25, 0.75])
    return float(first), float(third)


def test_truth_by_group() -> None:
    rows = [{"true_prob": truth} for truth in (0.1, 0.9) for _ in range(4)]
    second = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    predictions: dict[str, Tensor] = {
        "one": torch.stack([1 - second, second], -1),
        "two": torch.stack([second, 1 - second], -1),
    }
    (axes,) = plots.truth_by_group(rows, predictions, ("no", "yes")).axes
    boxes = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    corners = [np.asarray(box.get_path().vertices)[:, 1] for box in boxes]
    spans = [(ends.min(), ends.max()) for ends in corners]
    expected = [
        quartiles(probs[part, 1].tolist()) for probs in predictions.values() for part in (slice(4), slice(4, 8))
    ]
    assert_allclose(spans, expected, rtol=1e-6)
    assert legend(axes) == ["one", "two", "true probability"]
    dashes = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    levels = [np.asarray(segment)[:, 1] for lines in dashes for segment in lines.get_segments()]
    assert_allclose(levels, [[0.1, 0.1], [0.9, 0.9]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.10", "0.90"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true P(yes | pair)", "predicted P(yes | pair)")
    assert axes.get_ylim() == (0, 1)


@pytest.mark.parametrize("longest", [10, 60, 120])
def test_names_below_are_whole(longest: int) -> None:
    names = ["map", "n" * longest, *(f"method {index}" for index in range(9))]
    coverage = torch.linspace(0.1, 1, 10)
    for figure in (
        plots.risk_coverage(dict.fromkeys(names, (coverage, coverage))),
        plots.quantile_calibration([0.1, 0.9], {name: [0.2, 0.8] for name in names}),
    ):
        figure.canvas.draw()
        (legend,) = figure.legends
        box, page = legend.get_window_extent(), figure.bbox
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
