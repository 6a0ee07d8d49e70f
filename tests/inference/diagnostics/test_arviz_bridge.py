"""ArviZ behind one module: on what `to_inference_data` returns, against ArviZ itself."""

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics.arviz_bridge import (
    arviz,
    compare,
    ess,
    group,
    group_names,
    loo,
    plot_forest,
    plot_ppc,
    rhat,
    smoothed_log_weights,
    summary,
    waic,
)
from bayes_lora.inference.diagnostics.inference_data import to_inference_data
from tests.networks import build_network, build_pair, make_batch

# pandas 3.1 advises against what ArviZ 0.23 does in `compare`; our `compare` keeps that to itself.
ignore_inplace = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")


@pytest.fixture(scope="module")
def data() -> Any:
    """400 draws, five rows, six steps."""
    history = [{"step": step, "loss": 2 / step, "nll": 1 / step} for step in range(1, 7)]
    pair = build_pair(build_network(num_layers=1), sample_scale=0.05)
    return to_inference_data(*pair, [make_batch()], num_samples=400, seed=3, history=history)


@pytest.fixture(scope="module")
def other() -> Any:
    """The same rows under another network."""
    pair = build_pair(build_network(seed=1, num_layers=1), sample_scale=0.05)
    return to_inference_data(*pair, [make_batch()], num_samples=400)


def without(data: Any, *names: str) -> Any:
    """The container without some of its groups."""
    return arviz().InferenceData(**{name: group(data, name) for name in group_names(data) if name not in names})


def test_summary_is_of_statistics_alone(data: Any) -> None:
    table = summary(data, ["effective_components", "pi"], probability=0.8)
    assert list(table) == ["mean", "sd", "lower", "upper"]
    effective = group(data, "posterior")["effective_components"].to_numpy()[0]
    np.testing.assert_allclose(table["mean"][:2], effective.mean(0))
    inside = (effective >= table["lower"].to_numpy()[:2]) & (effective <= table["upper"].to_numpy()[:2])
    np.testing.assert_allclose(inside.mean(0), 0.8, atol=0.01)
    whole = arviz().summary(data, kind="stats")
    assert len(whole) == sum(values[0, 0].size for values in group(data, "posterior").data_vars.values())
    with pytest.raises(ConfigurationError, match="probability=2 must lie between 0 and 1"):
        summary(data, probability=2)


def test_loo_and_waic(data: Any) -> None:
    az = arviz()
    for ours, theirs, suffix in ((loo(data), az.loo(data, True), "loo"), (waic(data), az.waic(data, True), "waic")):
        np.testing.assert_allclose(ours.elpd, theirs[f"elpd_{suffix}"], rtol=1e-10)
        np.testing.assert_allclose(ours.p, theirs[f"p_{suffix}"], rtol=1e-10)
        np.testing.assert_allclose(ours.se, theirs["se"], rtol=1e-10)
        np.testing.assert_allclose(ours.pointwise, theirs[f"{suffix}_i"], rtol=1e-10)
        assert ours.pointwise.dims == ("example",)
        assert not ours.warning
    assert loo(data).pareto_k is not None
    # Draws under which likelihoods vary a lot, as they do where the noise is too large.
    wild = {name: group(data, name) for name in ("posterior", "log_likelihood")}
    wild["log_likelihood"] = wild["log_likelihood"].map(
        lambda y: y - 4 * np.random.default_rng(0).gamma(1, size=y.shape)
    )
    with pytest.warns(UserWarning, match="varies by more than 0.4 nats"):
        assert waic(az.InferenceData(**wild)).warning
    with pytest.warns(UserWarning, match="shape parameter of Pareto"):
        assert loo(az.InferenceData(**wild)).warning


@ignore_inplace
def test_compare(data: Any, other: Any) -> None:
    table = compare({"one": data, "other": other})
    theirs = arviz().compare({"one": data, "other": other}, ic="loo", scale="log")
    assert list(table) == ["rank", "elpd", "p", "elpd_diff", "weight", "se", "dse", "warning"]
    assert list(table.index) == list(theirs.index)
    assert table["elpd_diff"].tolist() == pytest.approx((table["elpd"].max() - table["elpd"]).tolist())
    for name in ("rank", "elpd_diff", "weight", "se", "dse", "warning"):
        assert table[name].tolist() == theirs[name].tolist()
    np.testing.assert_allclose(table.loc["one", "elpd"], loo(data).elpd)
    moved = arviz().InferenceData(
        posterior=group(other, "posterior"),
        log_likelihood=group(other, "log_likelihood").assign_coords(example=[1, 2, 3, 4, 5]),
    )
    with pytest.raises(DataError, match="rows of 'other' are not those of 'one'"):
        compare({"one": data, "other": moved})
    with pytest.raises(DataError, match="nothing to compare with"):
        compare({"one": data})


def test_groups(data: Any) -> None:
    assert set(group_names(data)) == {
        *("posterior", "prior", "posterior_predictive", "log_likelihood", "observed_data", "sample_stats"),
        "constant_data",
    }
    assert data.attrs["inference_library"] == "bayes_lora"
    with pytest.raises(DataError, match=re.escape("no group 'log_likelihood'") + ".*need rows with labels"):
        loo(without(data, "log_likelihood"))


def test_plots(data: Any) -> None:
    az = arviz()
    assert az.plot_forest(data, combined=True).size == 1
    assert az.plot_ppc(data) is not None
    az.plot_density(data, var_names=["relative_noise"])
    forest = plot_forest(data, ["effective_components"], coords={"adapter": data.posterior["adapter"].values[:1]})
    assert len(forest.axes[0].get_yticks()) == 1
    between = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    check = plot_ppc(data)
    assert between == np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert [label.get_text() for label in check.axes[0].get_xticklabels()] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    with pytest.raises(DataError, match="no group 'observed_data'"):
        plot_ppc(without(data, "observed_data"))
    plt.close("all")


# matplotlib 3.11 warns of how ArviZ 0.23 calls it.
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_traces_of_the_loss(data: Any) -> None:
    axes = arviz().plot_trace(group(data, "sample_stats")[["loss", "nll"]].rename(step="draw"))
    assert axes.shape == (2, 2)
    plt.close("all")


def test_markov_chains() -> None:
    """R-hat and effective draws of chains that agree, and of one that is elsewhere."""
    draws = np.random.default_rng(0).normal(size=(4, 500, 2, 3))
    moved = draws + np.array([0, 0, 0, 3.0])[:, None, None, None]
    for ours, theirs in ((rhat(draws), "rhat"), (ess(draws, "tail"), "ess")):
        assert ours.shape == (2, 3)
        options = {"method": "tail"} if theirs == "ess" else {}
        np.testing.assert_allclose(ours[1, 2], getattr(arviz(), theirs)(draws[..., 1, 2], **options))
    assert rhat(draws).max() < 1.01 < 1.3 < rhat(moved).min()
    assert ess(moved).max() < 20 < 1000 < ess(draws).min()


def test_smoothed_weights_are_those_of_loo(data: Any) -> None:
    values = group(data, "log_likelihood")["y"].to_numpy()[0].T
    weights, k_hat = smoothed_log_weights(-values)
    np.testing.assert_allclose(np.exp(weights).sum(-1), 1)
    expected: Any = loo(data)
    assert k_hat.tolist() == pytest.approx(expected.pareto_k.values.tolist())
    np.testing.assert_allclose(np.log(np.exp(weights + values).sum(-1)), loo(data).pointwise)


def test_arviz_is_used_in_one_module() -> None:
    root = Path(__file__).parents[3]
    users = {
        path.name
        for room in ("bayes_lora", "models", "inference", "experiments")
        for path in (root / room).rglob("*.py")
        if re.search(r"^\s*(import|from) arviz\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert users == {"arviz_bridge.py"}
