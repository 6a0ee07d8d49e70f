"""PSIS-LOO, WAIC and comparison: against closed forms and formulas written out, whatever ArviZ is installed."""

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics import compare, elpd_held_out, loo, waic
from bayes_lora.inference.diagnostics.arviz_bridge import arviz, from_groups, group, group_names


def of_log_likelihoods(values: Any, **options: Any) -> Any:
    """Inference data with these log likelihoods (draw, example), of a posterior with these options."""
    data = xr.Dataset({"y": (("chain", "draw", "example"), values[None])}, coords={"example": range(values.shape[1])})
    posterior = xr.Dataset({"a": (("chain", "draw"), values[None, :, 0])})
    constants = {"constant_data": xr.Dataset({"rank": 2}, attrs=options)} if options else {}
    return from_groups({"posterior": posterior, "log_likelihood": data, **constants})


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


class Tempered:
    """y_i ~ N(m, 1) with prior m ~ N(0, 4) at temperature T: m ~ N(., 1 / (1/4 + n / T))."""

    def __init__(self, temperature: float, num_draws: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        rows = generator.normal(size=8)
        precision = 1 / 4 + len(rows) / temperature
        draws = rows.sum() / temperature / precision + generator.normal(size=(num_draws, 1)) / math.sqrt(precision)
        options = {"objective": "elbo", "kl_temperature": temperature}
        self.data = of_log_likelihoods(stats.norm.logpdf(rows, draws), **options)
        self.old = of_log_likelihoods(stats.norm.logpdf(rows, draws), objective="elbo", temperature=temperature)
        self.untold = of_log_likelihoods(stats.norm.logpdf(rows, draws))
        left = 1 / 4 + (len(rows) - 1) / temperature
        mean = (rows.sum() - rows) / temperature / left
        self.exact = float(stats.norm(mean, math.sqrt(1 + 1 / left)).logpdf(rows).sum())
        # Of as many draws of m as there are, the log of the mean density is below the density of the mean.
        self.in_sample = float(stats.norm(rows.sum() / temperature / precision, 1).logpdf(rows).sum())


@pytest.mark.filterwarnings("ignore:the shape parameter of Pareto")
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_loo_of_a_tempered_posterior_is_the_exact_answer_or_says_that_it_is_not(temperature: float) -> None:
    found = [loo(Tempered(temperature, 20_000, seed).data) for seed in range(20)]
    exact = [Tempered(temperature, 1, seed).exact for seed in range(20)]
    for estimate, expected in zip(found, exact, strict=True):
        if not estimate.warning:
            assert estimate.elpd == pytest.approx(expected, abs=0.1)
    # The less the temperature, the more a row left out moves the mean by more than it varies.
    num_failing = sum(estimate.warning for estimate in found)
    least, most = {1.0: (0, 0), 0.1: (5, 19), 0.01: (20, 20)}[temperature]
    assert least <= num_failing <= most


def test_at_a_low_temperature_weights_for_temperature_1_would_be_wrong_and_approved() -> None:
    """What the reader of no temperature would be told: the fit to the rows themselves, with the best of k-hats."""
    toy = Tempered(0.01, 4000)
    wrong = loo(toy.untold)
    assert not wrong.warning
    assert wrong.elpd == pytest.approx(toy.in_sample, abs=0.05)
    assert toy.in_sample - toy.exact > 0.3
    with pytest.warns(UserWarning, match="k-hat, is above"):
        assert loo(toy.data).pareto_k.max() > 1  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:the log likelihood of .* examples, times 1 / kl_temperature")
def test_waic_of_a_tempered_posterior() -> None:
    """Near the exact answer, which without the 1 / T it is .6 off at T = .5."""
    toys = [Tempered(0.5, 4000, seed) for seed in range(20)]
    assert abs(np.mean([waic(toy.data).elpd - toy.exact for toy in toys])) < 0.15
    assert np.mean([waic(toy.untold).elpd - toy.exact for toy in toys]) > 0.5
    with pytest.warns(UserWarning, match="where WAIC starts to fail"):
        assert waic(Tempered(0.01, 4000).data).warning


@pytest.mark.filterwarnings("ignore:the shape parameter of Pareto", "ignore:the log likelihood of")
def test_the_old_name_of_the_temperature_is_read() -> None:
    toy = Tempered(0.5, 500)
    assert loo(toy.old).elpd == loo(toy.data).elpd != loo(toy.untold).elpd
    assert waic(toy.old).elpd == waic(toy.data).elpd != waic(toy.untold).elpd


def test_the_papers_objective_has_no_density_that_rows_could_be_left_out_of(inference_data: Any) -> None:
    data = of_log_likelihoods(group(inference_data, "log_likelihood")["y"].to_numpy()[0], objective="paper")
    for estimate in (loo, waic):
        with pytest.raises(ConfigurationError, match="objective='paper' has no density that rows can be left out of"):
            estimate(data)
    with pytest.raises(ConfigurationError, match="objective='paper'"):
        compare({"one": data, "other": data})


def test_rows_held_out_need_nothing_left_out(inference_data: Any, other_inference_data: Any) -> None:
    """Of any posterior, these are of objective paper."""
    models = {"one": inference_data, "other": other_inference_data}
    table = compare(models, held_out=True)
    for name, data in models.items():
        values, found = group(data, "log_likelihood")["y"].to_numpy()[0], elpd_held_out(data)
        np.testing.assert_allclose(found.pointwise, np.log(np.exp(values).mean(0)))
        assert found.elpd == pytest.approx(float(found.pointwise.sum())) == table.loc[name, "elpd"]
        assert (found.p, found.pareto_k, found.warning) == (0, None, False)


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


@pytest.fixture
def bayes(inference_data: Any) -> Any:
    """These draws and log likelihoods as if by Bayes' rule, which is all that ArviZ knows."""
    return without(inference_data, "constant_data")


def test_loo_is_arviz(bayes: Any) -> None:
    found, theirs = loo(bayes), arviz().loo(bayes, pointwise=True, reff=1.0)
    name = next(name for name in ("elpd_loo", "elpd") if hasattr(theirs, name))
    assert found.elpd == pytest.approx(float(getattr(theirs, name)), rel=1e-10)
    assert found.pareto_k is not None
    np.testing.assert_allclose(found.pareto_k, theirs.pareto_k, atol=1e-8)
    assert found.pointwise.dims == ("example",)
    assert not found.warning


def test_waic_is_its_formula(bayes: Any) -> None:
    found = waic(bayes)
    values = group(bayes, "log_likelihood")["y"].to_numpy()[0]
    pointwise = [math.log(np.exp(column).mean()) - column.var(ddof=1) for column in values.T]
    np.testing.assert_allclose(found.pointwise, pointwise)
    assert found.elpd == pytest.approx(sum(pointwise))
    assert found.p == pytest.approx(values.var(0, ddof=1).sum())
    assert found.se == pytest.approx(math.sqrt(len(pointwise)) * np.std(pointwise))


def test_where_they_fail_they_say_so(inference_data: Any) -> None:
    """Draws under which likelihoods vary a lot, as they do where the noise is too large."""
    values = group(inference_data, "log_likelihood")["y"].to_numpy()[0]
    wild = of_log_likelihoods(values - 4 * np.random.default_rng(0).gamma(1, size=values.shape))
    with pytest.warns(UserWarning, match=r"times 1 / kl_temperature, varies by more than 0\.4 nats"):
        assert waic(wild).warning
    with pytest.warns(
        UserWarning, match=r"the shape parameter of Pareto-smoothed weights, k-hat, is above 0\.62 for 5"
    ):
        assert loo(wild).warning
    with pytest.raises(DataError, match=re.escape("no group 'log_likelihood'") + ".*need rows with labels"):
        loo(without(inference_data, "log_likelihood"))
    with pytest.raises(DataError, match=r"one draw has nothing to compare with\. Pass num_samples=100"):
        loo(of_log_likelihoods(values[:1]))
    with pytest.raises(DataError, match="one draw has nothing to compare with"):
        waic(of_log_likelihoods(values[:1]))


def test_compare(bayes: Any, other_inference_data: Any) -> None:
    models = {"one": bayes, "other": without(other_inference_data, "constant_data")}
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
