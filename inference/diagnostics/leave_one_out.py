"""How well new rows would be predicted, estimated from the rows at hand: PSIS-LOO, WAIC, and methods compared by them.

Computed here, from the log likelihoods that `to_inference_data` keeps, since releases of ArviZ differ: in the tail that
they smooth, in the divisor of the standard error, in what they round, and 1.x has no WAIC.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.special
import xarray as xr

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics.arviz_bridge import InferenceData, group, group_names
from bayes_lora.inference.diagnostics.importance import Array, k_hat_threshold, leave_one_out_weights
from bayes_lora.inference.diagnostics.stacking import stacking_weights

_HIGH_VARIANCE = 0.4  # nats^2, of an example's log likelihood: beyond, WAIC starts to fail (Vehtari et al., 2017)


@dataclass(frozen=True)
class ELPD:
    """Expected log pointwise predictive density of new rows, estimated from the rows at hand; nats, higher is better.

    Attributes:
        elpd: the sum over examples.
        se: its standard error, over examples.
        p: effective number of parameters.
        pointwise: (example,) the terms of the sum.
        pareto_k: (example,) shape of the importance weights' tail (`loo`); None for the others.
        warning: whether the estimate is not to be relied on, for one example or more.
    """

    elpd: float
    se: float
    p: float
    pointwise: xr.DataArray
    pareto_k: xr.DataArray | None
    warning: bool


def loo(data: InferenceData) -> ELPD:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling (PSIS-LOO).

        elpd_i = ln sum_s w_is p(y_i | draw s),    w_is proportional to p(y_i | draw s)^(-1 / T), smoothed

    T is the `kl_temperature` that the posterior was fitted at, from the data's group constant_data; data from
    elsewhere, without that group, are taken for draws by Bayes' rule, T = 1. At a small T a row counts many times:
    leaving it out changes the posterior so much that draws of it say little about what is left, and `pareto_k` tells.

    It weighs the draws as if they were the exact posterior's given these rows. Draws of a guide are not: where the two
    differ, so do this number and what leaving rows out would give, and a small `pareto_k` does not exclude that. Rows
    that were not trained on need no leaving out: for them use the mean log likelihood itself, as `all_metrics` does.

    Raises:
        DataError: no group log_likelihood, or a single draw.
        ConfigurationError: a posterior of objective "paper", which is of no density that rows can be left out of.

    Source: Vehtari, Gelman and Gabry (2017), arXiv 1507.04544; Vehtari et al. (2024), arXiv 1507.02646.
    """
    values = _log_likelihoods(data)
    num_draws = values.sizes["sample"]
    log_weights, k_hat = leave_one_out_weights(values.to_numpy(), _kl_temperature(data))
    pointwise = _of_examples("loo_i", values, scipy.special.logsumexp(log_weights + values.to_numpy(), axis=-1))
    threshold = k_hat_threshold(num_draws)
    num_unreliable = int((k_hat > threshold).sum())
    if num_unreliable:
        warnings.warn(
            f"the shape parameter of Pareto-smoothed weights, k-hat, is above {threshold:.2f} for {num_unreliable} "
            f"examples: {num_draws} draws are too few to leave these out. Take more draws, or rows held out.",
            stacklevel=2,
        )
    p = float((_log_mean_density(values) - pointwise).sum())
    return _elpd(pointwise, p, _of_examples("pareto_k", values, k_hat), num_unreliable > 0)


def elpd_held_out(data: InferenceData) -> ELPD:
    """The log density of rows that were not trained on, on the scale of `loo`: nothing has to be left out of them.

        elpd_i = ln mean_s p(y_i | draw s)

    It is right for every posterior, of objective "paper" too, at every temperature.

    Raises:
        DataError: no group log_likelihood, or a single draw.

    Source: Vehtari, Gelman and Gabry (2017), arXiv 1507.04544, eq. 3, of rows apart from those trained on.
    """
    return _elpd(_log_mean_density(_log_likelihoods(data)), 0.0, None, False)


def waic(data: InferenceData) -> ELPD:
    """The widely applicable information criterion, on the scale of `loo`.

        elpd_i = ln mean_s p(y_i | draw s) - 1/T var_s ln p(y_i | draw s)

    with the variance of a sample, S - 1 in its divisor. What is said of `loo` holds of it as well; it is the second
    order of the same thing, and fails where the weights of `loo`, 1/T ln p, vary much.

    Raises:
        DataError: no group log_likelihood, or a single draw.
        ConfigurationError: see `loo`.

    Source: Watanabe (2010), JMLR 11, whose inverse temperature is 1 / T; Vehtari, Gelman and Gabry (2017), arXiv
    1507.04544, eq. 11 to 13.
    """
    values = _log_likelihoods(data)
    temperature = _kl_temperature(data)
    variance = values.var("sample", ddof=1)
    p = variance / temperature
    pointwise = (_log_mean_density(values) - p).rename("waic_i")
    failing = variance / min(temperature, 1.0) ** 2 > _HIGH_VARIANCE
    if failing.any():
        warnings.warn(
            f"the log likelihood of {int(failing.sum())} examples, times 1 / kl_temperature, varies by more than "
            f"{_HIGH_VARIANCE} nats^2 over the draws, where WAIC starts to fail. Compare with loo(data).",
            stacklevel=2,
        )
    return _elpd(pointwise, float(p.sum()), None, bool(failing.any()))


def compare(models: Mapping[str, InferenceData], *, held_out: bool = False) -> pd.DataFrame:
    """Methods ordered by `loo`, best first, with differences, their standard errors and stacking weights.

    Args:
        models: inference data of the same rows, by name.
        held_out: whether the rows were not trained on: then by `elpd_held_out`.

    Returns:
        one row for each name: rank, elpd, p, elpd_diff (below the best), weight, se, dse (of the difference), warning.

    Raises:
        DataError: fewer than two names, no group log_likelihood, or different rows.
        ConfigurationError: see `loo`.

    Source: Yao et al. (2018), arXiv 1704.02030 (stacking).

    Example:
        >>> compare({"monteclora": data, "mean_field": other})  # doctest: +SKIP
    """
    if len(models) < 2:
        raise DataError(
            f"there is nothing to compare with {list(models)}: give inference data under two names or more."
        )
    rows = {name: group(data, "log_likelihood")["example"].to_numpy() for name, data in models.items()}
    first, *others = rows
    for name in others:
        if not np.array_equal(rows[name], rows[first]):
            raise DataError(
                f"the rows of {name!r} are not those of {first!r}, so their predictions cannot be compared. Make both "
                "with the same loader and the same example_ids."
            )
    estimate = elpd_held_out if held_out else loo
    found = {name: estimate(data) for name, data in models.items()}
    names = sorted(found, key=lambda name: -found[name].elpd)
    pointwise = np.stack([found[name].pointwise.to_numpy() for name in names], axis=-1)  # (example, method)
    below = pointwise[:, :1] - pointwise
    columns = {
        "rank": range(len(names)),
        "elpd": [found[name].elpd for name in names],
        "p": [found[name].p for name in names],
        "elpd_diff": below.sum(0),
        "weight": stacking_weights(pointwise),
        "se": [found[name].se for name in names],
        "dse": np.sqrt(len(below)) * below.std(0),
        "warning": [found[name].warning for name in names],
    }
    return pd.DataFrame(columns, index=names)


def _log_likelihoods(data: InferenceData) -> xr.DataArray:
    """(example, sample), nats: all chains behind each other."""
    values = group(data, "log_likelihood")["y"].stack(sample=("chain", "draw"))
    if values.sizes["sample"] < 2:
        raise DataError("one draw has nothing to compare with. Pass num_samples=100 or so to to_inference_data.")
    return values.transpose("example", "sample").astype(np.float64)


def _kl_temperature(data: InferenceData) -> float:
    """T of the posterior that the draws are of.

    Raises:
        ConfigurationError: they are of none.
    """
    if "constant_data" not in group_names(data):
        return 1.0
    options = group(data, "constant_data").attrs
    if options.get("objective", "elbo") != "elbo":
        raise ConfigurationError(
            f"objective={options['objective']!r} has no density that rows can be left out of: its prior is of the "
            "noise alone, weighted by kl_weight. Fit with objective='elbo', or take rows held out: "
            "elpd_held_out(data), or compare(models, held_out=True)."
        )
    # Files of version 0.1 have it under its old name.
    return float(options.get("kl_temperature", options.get("temperature", 1.0)))


def _log_mean_density(values: xr.DataArray) -> xr.DataArray:
    """(example,) ln mean_s p(y_i | draw s)."""
    mean = scipy.special.logsumexp(values.to_numpy(), axis=-1) - np.log(values.sizes["sample"])
    return _of_examples("density_i", values, mean)


def _of_examples(name: str, values: xr.DataArray, numbers: Array) -> xr.DataArray:
    return xr.DataArray(numbers, dims=["example"], coords={"example": values["example"]}, name=name)


def _elpd(pointwise: xr.DataArray, p: float, pareto_k: xr.DataArray | None, warning: bool) -> ELPD:
    se = float(np.sqrt(pointwise.size * pointwise.var()))
    return ELPD(float(pointwise.sum()), se, p, pointwise, pareto_k, warning)
