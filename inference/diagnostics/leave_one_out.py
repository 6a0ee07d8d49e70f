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

from bayes_lora.errors import DataError
from bayes_lora.inference.diagnostics.arviz_bridge import InferenceData, group
from bayes_lora.inference.diagnostics.importance import Array, k_hat_threshold, pareto_smoothed
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
        pareto_k: (example,) shape of the importance weights' tail (`loo`); None for `waic`.
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

        elpd_i = ln sum_s w_is p(y_i | draw s),    w_is proportional to 1 / p(y_i | draw s), smoothed

    It weighs the draws as if they were the exact posterior's given these rows. Draws of a guide are not: where the two
    differ, so do this number and what leaving rows out would give, and a small `pareto_k` does not exclude that. Rows
    that were not trained on need no leaving out: for them use the mean log likelihood itself, as `all_metrics` does.

    Raises:
        DataError: no group log_likelihood, or a single draw.

    Source: Vehtari, Gelman and Gabry (2017), arXiv 1507.04544; Vehtari et al. (2024), arXiv 1507.02646.
    """
    values = _log_likelihoods(data)
    num_draws = values.sizes["sample"]
    if num_draws < 2:
        raise DataError("one draw has nothing to weigh. Pass num_samples=100 or so to to_inference_data.")
    log_weights, k_hat = pareto_smoothed(-values.to_numpy())
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


def waic(data: InferenceData) -> ELPD:
    """The widely applicable information criterion, on the scale of `loo`.

        elpd_i = ln mean_s p(y_i | draw s) - var_s ln p(y_i | draw s)

    What is said of `loo` holds of it as well.

    Raises:
        DataError: no group log_likelihood.

    Source: Watanabe (2010); Vehtari, Gelman and Gabry (2017), arXiv 1507.04544, eq. 11 to 13.
    """
    values = _log_likelihoods(data)
    variance = values.var("sample")
    pointwise = (_log_mean_density(values) - variance).rename("waic_i")
    unreliable = bool((variance > _HIGH_VARIANCE).any())
    if unreliable:
        warnings.warn(
            f"the log likelihood of {int((variance > _HIGH_VARIANCE).sum())} examples varies by more than "
            f"{_HIGH_VARIANCE} nats^2 over the draws, where WAIC starts to fail. Compare with loo(data).",
            stacklevel=2,
        )
    return _elpd(pointwise, float(variance.sum()), None, unreliable)


def compare(models: Mapping[str, InferenceData]) -> pd.DataFrame:
    """Methods ordered by `loo`, best first, with differences, their standard errors and stacking weights.

    Args:
        models: inference data of the same rows, by name.

    Returns:
        one row for each name: rank, elpd, p, elpd_diff (below the best), weight, se, dse (of the difference), warning.

    Raises:
        DataError: fewer than two names, no group log_likelihood, or different rows.

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
    found = {name: loo(data) for name, data in models.items()}
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
    return values.transpose("example", "sample").astype(np.float64)


def _log_mean_density(values: xr.DataArray) -> xr.DataArray:
    """(example,) ln mean_s p(y_i | draw s)."""
    mean = scipy.special.logsumexp(values.to_numpy(), axis=-1) - np.log(values.sizes["sample"])
    return _of_examples("density_i", values, mean)


def _of_examples(name: str, values: xr.DataArray, numbers: Array) -> xr.DataArray:
    return xr.DataArray(numbers, dims=["example"], coords={"example": values["example"]}, name=name)


def _elpd(pointwise: xr.DataArray, p: float, pareto_k: xr.DataArray | None, warning: bool) -> ELPD:
    se = float(np.sqrt(pointwise.size * pointwise.var()))
    return ELPD(float(pointwise.sum()), se, p, pointwise, pareto_k, warning)
