"""PSIS-LOO, WAIC and comparison: against closed forms and formulas written out, whatever ArviZ is installed."""

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from bayes_lora.errors import DataError
from bayes_lora.inference.diagnostics import compare, loo, waic
from bayes_lora.inference.diagnostics.arviz_bridge import arviz, from_groups, group, group_names


def of_log_likelihoods(values: Any) -> Any:
    """Inference data with these log likelihoods (draw, example)."""
    data = xr.Dataset({"y": (("chain", "draw", "example"), values[None])}, coords={"example": range(values.shape[1])})
    return from_groups(
        {"posterior": xr.Dataset({"a": (("chain", "draw"), values[None, :, 0])}), "log_likelihood": data}
    )


def without(data: Any, name: str) -> Any:
    return from_groups({other: group(data, other) for other in group_names(data) if other != name})


def test_loo_of_a_conjugate_model_is_its_closed_form() -> None:
    """y_i ~ N(m, 1) with a flat prior of m: left out, y_i ~ N(mean of the others, 1 + 1 / (n - 1))."""
    n, generator = 20, np.random.default_rng(0)
    rows = generator.normal(size=n)
    others = (rows.sum() - rows) / (n - 1)
    exact = stats.norm(others, math.sqrt(1 + 1 / (n - 1))).logpdf(rows)
    found = np.array(
        [
            loo(of_log_likelihoods(stats.norm.logpdf(rows, rows.mean() + draws[:, None] / math.sqrt(n)))).elpd
            for draws in generator.normal(size=(40, 1000))
        ]
    )
    assert abs(found.mean() - exact.sum()) < 4 * found.std(ddof=1) / math.sqrt(40)
    # What the rows say of themselves is not what is said of new ones.
    assert stats.norm(rows.mean(), math.sqrt(1 + 1 / n)).logpdf(rows).sum() - exact.sum() > 0.5


def test_draws_that_agree_leave_nothing_to_weigh() -> None:
    """Of a point estimate repeated: the log likelihood itself, no parameters in use, perfect weights."""
    values = np.log([[0.2, 0.5, 0.9]]).repeat(100, axis=0)
    found = loo(of_log_likelihoods(values))
    assert found.pareto_k is not None
    assert found.pareto_k.values.tolist() == [-math.inf] * 3
    assert not found.warning
    for estimate in (found, waic(of_log_likelihoods(values))):
        np.testing.assert_allclose(estimate.pointwise, values[0])
        assert estimate.elpd == pytest.approx(math.log(0.2 * 0.5 * 0.9))
        assert estimate.p == pytest.approx(0, abs=1e-12)
        assert estimate.se == pytest.approx(math.sqrt(3) * values[0].std())


def test_loo_is_arviz(inference_data: Any) -> None:
    found, theirs = loo(inference_data), arviz().loo(inference_data, pointwise=True, reff=1.0)
    name = next(name for name in ("elpd_loo", "elpd") if hasattr(theirs, name))
    assert found.elpd == pytest.approx(float(getattr(theirs, name)), rel=1e-10)
    assert found.pareto_k is not None
    np.testing.assert_allclose(found.pareto_k, theirs.pareto_k, atol=1e-8)
    assert found.pointwise.dims == ("example",)
    assert not found.warning


def test_waic_is_its_formula(inference_data: Any) -> None:
    found = waic(inference_data)
    values = group(inference_data, "log_likelihood")["y"].to_numpy()[0]
    pointwise = [math.log(np.exp(column).mean()) - column.var() for column in values.T]
    np.testing.assert_allclose(found.pointwise, pointwise)
    assert found.elpd == pytest.approx(sum(pointwise))
    assert found.p == pytest.approx(values.var(0).sum())
    assert found.se == pytest.approx(math.sqrt(len(pointwise)) * np.std(pointwise))


def test_where_they_fail_they_say_so(inference_data: Any) -> None:
    """Draws under which likelihoods vary a lot, as they do where the noise is too large."""
    values = group(inference_data, "log_likelihood")["y"].to_numpy()[0]
    wild = of_log_likelihoods(values - 4 * np.random.default_rng(0).gamma(1, size=values.shape))
    with pytest.warns(UserWarning, match=r"varies by more than 0\.4 nats"):
        assert waic(wild).warning
    with pytest.warns(
        UserWarning, match=r"the shape parameter of Pareto-smoothed weights, k-hat, is above 0\.62 for 5"
    ):
        assert loo(wild).warning
    with pytest.raises(DataError, match=re.escape("no group 'log_likelihood'") + ".*need rows with labels"):
        loo(without(inference_data, "log_likelihood"))
    with pytest.raises(DataError, match=r"one draw has nothing to weigh\. Pass num_samples=100"):
        loo(of_log_likelihoods(values[:1]))


def test_compare(inference_data: Any, other_inference_data: Any) -> None:
    models = {"one": inference_data, "other": other_inference_data}
    table = compare(models)
    assert list(table) == ["rank", "elpd", "p", "elpd_diff", "weight", "se", "dse", "warning"]
    found = {name: loo(data) for name, data in models.items()}
    assert list(table.index) == sorted(found, key=lambda name: -found[name].elpd) == ["other", "one"]
    below = (found["other"].pointwise - found["one"].pointwise).to_numpy()
    assert table["rank"].tolist() == [0, 1]
    assert table["elpd_diff"].tolist() == pytest.approx([0, below.sum()])
    assert table["dse"].tolist() == pytest.approx([0, math.sqrt(len(below)) * below.std()])
    for name in ("elpd", "p", "se", "warning"):
        assert table[name].tolist() == [getattr(found[row], name) for row in table.index]
    with warnings.catch_warnings():
        # pandas 3.1 advises against what ArviZ 0.23 does.
        warnings.filterwarnings("ignore", "The inplace keyword", DeprecationWarning)
        theirs = arviz().compare(models)
    assert list(theirs.index) == list(table.index)
    np.testing.assert_allclose(table["weight"], theirs["weight"].astype(float), atol=1e-3)


def test_rows_that_cannot_be_compared(inference_data: Any, other_inference_data: Any) -> None:
    moved = {name: group(other_inference_data, name) for name in ("posterior", "log_likelihood")}
    moved["log_likelihood"] = moved["log_likelihood"].assign_coords(example=[1, 2, 3, 4, 5])
    with pytest.raises(DataError, match="rows of 'other' are not those of 'one'"):
        compare({"one": inference_data, "other": from_groups(moved)})
    with pytest.raises(DataError, match="nothing to compare with"):
        compare({"one": inference_data})
