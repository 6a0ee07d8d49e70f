"""ArviZ behind one module: the same answers with 0.23 and 1.x, and ArviZ itself on what `to_inference_data` returns."""

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from scipy import stats

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics.arviz_bridge import arviz, ess, group, group_names, rhat, summary


def test_summary_is_of_statistics_alone(inference_data: Any) -> None:
    table = summary(inference_data, ["effective_components", "pi"], probability=0.8)
    assert list(table) == ["mean", "sd", "lower", "upper"]
    effective = group(inference_data, "posterior")["effective_components"].to_numpy()[0]
    np.testing.assert_allclose(table["mean"][:2], effective.mean(0))
    np.testing.assert_allclose(table["sd"][:2], effective.std(0, ddof=1))
    inside = (effective >= table["lower"].to_numpy()[:2]) & (effective <= table["upper"].to_numpy()[:2])
    np.testing.assert_allclose(inside.mean(0), 0.8, atol=0.01)
    whole = summary(inference_data)
    assert len(whole) == sum(values[0, 0].size for values in group(inference_data, "posterior").data_vars.values())
    with pytest.raises(ConfigurationError, match="probability=2 must lie between 0 and 1"):
        summary(inference_data, probability=2)


def test_intervals_are_the_shortest(inference_data: Any) -> None:
    """Highest density, not equal tails: of all intervals with 80 % of the draws none is shorter."""
    table = summary(inference_data, ["effective_components"], probability=0.8)
    draws = np.sort(group(inference_data, "posterior")["effective_components"].to_numpy()[0], axis=0)
    inside = int(0.8 * len(draws))
    np.testing.assert_allclose(table["upper"] - table["lower"], (draws[inside:] - draws[:-inside]).min(0))


def test_groups(inference_data: Any) -> None:
    assert set(group_names(inference_data)) == {
        *("posterior", "prior", "posterior_predictive", "log_likelihood", "observed_data", "sample_stats"),
        "constant_data",
    }
    assert inference_data.attrs["inference_library"] == "bayes_lora"
    with pytest.raises(DataError, match="no group 'warmup' in these inference data, only posterior"):
        group(inference_data, "warmup")


# matplotlib 3.11 warns of how ArviZ 0.23 calls it.
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_arviz_takes_the_container(inference_data: Any) -> None:
    """As the docs and docstrings say it does."""
    arviz().plot_forest(inference_data, var_names=["effective_components"], combined=True)
    arviz().plot_trace(group(inference_data, "sample_stats")[["loss", "nll"]].rename(step="draw"))
    assert len(arviz().summary(inference_data, var_names=["relative_noise"], kind="stats")) == 2
    plt.close("all")


def split(draws: Any) -> Any:
    """Each chain (chain, draw) as two halves."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def rhat_written_out(draws: Any) -> float:
    """Of one number (chain, draw): the larger of R-hat of normal scores of ranks, and of distances to the median."""

    def plain(chains: Any) -> float:
        scores = stats.norm.ppf((stats.rankdata(chains).reshape(chains.shape) - 3 / 8) / (chains.size + 1 / 4))
        within = scores.var(1, ddof=1).mean()
        between = scores.mean(1).var(ddof=1)
        return float(np.sqrt((scores.shape[1] - 1) / scores.shape[1] + between / within))

    chains = split(draws)
    return max(plain(chains), plain(np.abs(chains - np.median(chains))))


def test_markov_chains() -> None:
    """R-hat and effective draws of chains that agree, and of one that is elsewhere."""
    draws = np.random.default_rng(0).normal(size=(4, 500, 2, 3))
    moved = draws + np.array([0, 0, 0, 3.0])[:, None, None, None]
    assert rhat(draws).shape == ess(draws).shape == ess(draws, "tail").shape == (2, 3)
    for chains in (draws, moved):
        assert rhat(chains)[1, 2] == pytest.approx(rhat_written_out(chains[..., 1, 2]))
    assert rhat(draws).max() < 1.01 < 1.3 < rhat(moved).min()
    assert ess(moved).max() < 20 < 1000 < ess(draws).min()


def test_effective_draws_of_the_tail() -> None:
    """Of the 5 % and 95 % quantiles, whatever ArviZ's own default is: the fewer of both."""
    draws = np.random.default_rng(1).normal(size=(4, 500))
    data = xr.Dataset({"x": (("chain", "draw"), draws)})
    of_quantiles = [float(arviz().ess(data, method="quantile", prob=prob)["x"]) for prob in (0.05, 0.95)]
    assert ess(draws[..., None], "tail").item() == pytest.approx(min(of_quantiles))


def test_arviz_is_used_in_one_module() -> None:
    root = Path(__file__).parents[3]
    users = {
        path.name
        for room in ("bayes_lora", "models", "inference", "experiments")
        for path in (root / room).rglob("*.py")
        if re.search(r"^\s*(import|from) arviz\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert users == {"arviz_bridge.py"}
