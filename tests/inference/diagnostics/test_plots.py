"""Pictures of inference data show the numbers they are of."""

from typing import Any

import numpy as np
import pytest

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
