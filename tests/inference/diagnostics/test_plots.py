"""Pictures of inference data show the numbers they are of."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics.arviz_bridge import from_groups, group, summary
from bayes_lora.inference.diagnostics.plots import plot_forest, plot_ppc


def test_forest(inference_data: Any) -> None:
    name = str(group(inference_data, "posterior")["adapter"].values[0])
    options: dict[str, Any] = {"coords": {"adapter": [name]}, "var_names": ["effective_components"]}
    figure = plot_forest(inference_data, **options, probability=0.8)
    axes: Any = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"effective_components[{name}]"]
    for lines, probability in zip(axes.collections, (0.8, 0.5), strict=True):
        table = summary(inference_data, **options, probability=probability)
        (((start, _), (end, _)),) = lines.get_segments()
        assert (start, end) == (table["lower"].item(), table["upper"].item())
    assert axes.lines[0].get_xdata() == [
        group(inference_data, "posterior")["effective_components"].values[0, :, 0].mean()
    ]
    with pytest.raises(ConfigurationError, match="probability=2 must lie between 0 and 1"):
        plot_forest(inference_data, probability=2)


def test_labels_drawn_and_observed(inference_data: Any) -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    axes: Any = plot_ppc(inference_data).axes[0]
    assert state == np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert [label.get_text() for label in axes.get_xticklabels()] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    drawn = group(inference_data, "posterior_predictive")["y"].to_numpy()
    observed = group(inference_data, "observed_data")["y"].to_numpy()
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([(drawn == c).mean() for c in range(3)])
    assert sum(heights) == pytest.approx(1)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [(observed == c).mean() for c in range(3)])
    with pytest.raises(DataError, match="no group 'observed_data'"):
        plot_ppc(from_groups({"posterior": group(inference_data, "posterior")}))


def as_data(drawn: Any, observed: Any, dims: tuple[str, ...], **coords: Any) -> Any:
    """Labels drawn (draw, example, ...) and observed."""
    predictive = xr.Dataset({"y": (("chain", "draw", "example", *dims), drawn[None])}, coords)
    return from_groups(
        {"posterior_predictive": predictive, "observed_data": xr.Dataset({"y": (("example", *dims), observed)}, coords)}
    )


def test_several_labels_are_shares_of_rows() -> None:
    random = np.random.default_rng(0)
    drawn, observed = random.integers(0, 2, (10, 6, 2)), random.integers(0, 2, (6, 2))
    axes: Any = plot_ppc(as_data(drawn, observed, ("label",), label=["joy", "fear"])).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["joy", "fear"]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(drawn.mean((0, 1)).tolist())
    np.testing.assert_allclose(axes.lines[0].get_ydata(), observed.mean(0))


def test_tokens_without_a_label_do_not_count() -> None:
    observed = np.array([[0, 1, -100], [1, -100, -100]])
    drawn = np.array([[[0, 0, -100], [1, -100, -100]], [[1, 1, -100], [1, -100, -100]]])
    data = as_data(drawn, observed, ("token",))
    found = group(data, "posterior_predictive").assign_coords({"class": ["O", "B"]})
    data = from_groups({"posterior_predictive": found, "observed_data": group(data, "observed_data")})
    axes: Any = plot_ppc(data).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([1 / 3, 2 / 3])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1 / 3, 2 / 3])


def test_numbers_have_a_histogram_for_each_output() -> None:
    random = np.random.default_rng(0)
    drawn, observed = random.normal(size=(8, 40, 2)) * [1, 5], random.normal(size=(40, 2)) * [1, 5]
    figure = plot_ppc(as_data(drawn, observed, ("output",), output=["a", "b"]))
    for output, axes in enumerate(figure.axes):
        shown: Any = axes
        assert shown.get_xlabel() == f"label, output {'ab'[output]}"
        edges = np.array([bar.get_x() for bar in shown.patches])
        assert sum(bar.get_height() for bar in shown.patches) == pytest.approx(1, abs=0.02)
        marks = shown.lines[0].get_ydata()
        assert marks.sum() == pytest.approx(1)
        middle = (observed[:, output] > edges[10]).mean()
        assert marks[10:].sum() == pytest.approx(middle, abs=0.1)
    assert plot_ppc(as_data(drawn[..., 0], observed[:, 0], ())).axes[0].get_xlabel() == "label"
