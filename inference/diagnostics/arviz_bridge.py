"""All use of ArviZ: its container of draws, and those of its functions that are used here.

ArviZ 0.x keeps groups of draws in its `InferenceData`, ArviZ 1.x in an `xarray.DataTree`, and names, arguments and
columns of its functions changed. In front of this module it is the same: a group is asked for with `group`, results
have the fields and columns given here. Tested with 0.23; the branches for 1.x follow its documentation.

Draws of a guide are independent, one chain: their R-hat and effective sample size say nothing, and are not shown.
`rhat` and `ess` are for Markov chains.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.special
import torch
import xarray as xr
from numpy.typing import NDArray

from bayes_lora.checks import require_fraction
from bayes_lora.errors import DataError
from bayes_lora.randomness import seeded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

InferenceData = Any  # arviz.InferenceData or xarray.DataTree
Names = Sequence[str] | None
Array = NDArray[np.float64]

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


@cache
def arviz() -> Any:
    """The installed ArviZ, imported when first used: that takes seconds, for which no command line should wait."""
    with warnings.catch_warnings():
        # On its first import of a day, 0.23 announces the changes that this module is about.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
        import arviz
    return arviz


def from_groups(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None) -> InferenceData:
    """A container with these groups of variables, as the installed ArviZ takes it."""
    if _is_before_1():
        return arviz().InferenceData(attrs=dict(attrs or {}), **groups)
    tree = xr.DataTree.from_dict(dict(groups))
    tree.attrs.update(attrs or {})
    return tree


def group(data: InferenceData, name: str) -> xr.Dataset:
    """One group of a container.

    Raises:
        DataError: there is no such group.
    """
    if name not in group_names(data):
        raise DataError(
            f"there is no group {name!r} in these inference data, only {', '.join(group_names(data))}. "
            "log_likelihood and observed_data need rows with labels, sample_stats the history of a fit."
        )
    found = data[name]
    return found if isinstance(found, xr.Dataset) else found.to_dataset()


def group_names(data: InferenceData) -> list[str]:
    """The groups of a container."""
    return list(data.children if isinstance(data, xr.DataTree) else data.groups())


def summary(
    data: InferenceData,
    var_names: Names = None,
    *,
    group: str = "posterior",
    probability: float = 0.9,
    coords: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Mean, sd, and the bounds `lower` and `upper` of the highest-density interval, one row for each number.

    No R-hat and no effective sample size: draws of a guide are independent, so these find nothing wrong with any guide,
    however far from the posterior it is.

    Args:
        data: what `to_inference_data` returned.
        var_names: variables; None is all.
        group: "posterior" or "prior".
        probability: inside the interval.
        coords: coordinates to restrict it to, by dimension.

    Example:
        >>> summary(data, ["effective_components", "relative_noise"])  # doctest: +SKIP
    """
    require_fraction("probability", probability)
    options: dict[str, Any] = {"group": group, "kind": "stats", "round_to": "none", "coords": coords}
    if _is_before_1():
        options |= {"hdi_prob": probability}
    else:
        options |= {"ci_prob": probability, "ci_kind": "hdi"}
    table = arviz().summary(data, var_names, **options)
    # The bounds are named after the probability, otherwise in every version.
    return table.set_axis(["mean", "sd", "lower", "upper"], axis=1)


def loo(data: InferenceData) -> ELPD:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling (PSIS-LOO).

    It weighs the draws as if they were the exact posterior's given these rows. Draws of a guide are not: where the two
    differ, so do this number and what leaving rows out would give, and a small `pareto_k` does not exclude that. Rows
    that were not trained on need no leaving out: for them use the mean log likelihood itself, as `all_metrics` does.

    Raises:
        DataError: no group log_likelihood.

    Source: Vehtari, Gelman and Gabry (2017), arXiv 1507.04544; Vehtari et al. (2024), arXiv 1507.02646.
    """
    found = _psis_loo(data)
    elpd, p, pointwise = ("elpd_loo", "p_loo", "loo_i") if _is_before_1() else ("elpd", "p", "elpd_i")
    return ELPD(
        elpd=float(getattr(found, elpd)),
        se=float(found.se),
        p=float(getattr(found, p)),
        pointwise=getattr(found, pointwise),
        pareto_k=found.pareto_k.rename("pareto_k").drop_attrs(),
        warning=bool(found.warning),
    )


def waic(data: InferenceData) -> ELPD:
    """The widely applicable information criterion, on the scale of `loo`.

        elpd_i = ln mean_s p(y_i | draw s) - var_s ln p(y_i | draw s)

    Computed here, since ArviZ 1.x no longer has it. What is said of `loo` holds of it as well.

    Raises:
        DataError: no group log_likelihood.

    Source: Watanabe (2010); Vehtari, Gelman and Gabry (2017), arXiv 1507.04544, eq. 11 to 13.
    """
    values = group(data, "log_likelihood")["y"].stack(sample=("chain", "draw")).transpose("sample", "example")
    variance = values.var("sample")
    density = scipy.special.logsumexp(values.to_numpy(), axis=0) - np.log(values.sizes["sample"])
    pointwise = (density - variance).rename("waic_i")
    unreliable = bool((variance > _HIGH_VARIANCE).any())
    if unreliable:
        warnings.warn(
            f"the log likelihood of {int((variance > _HIGH_VARIANCE).sum())} examples varies by more than "
            f"{_HIGH_VARIANCE} nats^2 over the draws, where WAIC starts to fail. Compare with loo(data).",
            stacklevel=2,
        )
    se = float(np.sqrt(pointwise.size * pointwise.var()))
    return ELPD(float(pointwise.sum()), se, float(variance.sum()), pointwise, None, unreliable)


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
    found = {name: _psis_loo(data) for name, data in models.items()}
    with warnings.catch_warnings():
        # ArviZ 0.23 sorts a table in place, which pandas from 3.1 on advises against.
        warnings.filterwarnings("ignore", "The inplace keyword", DeprecationWarning)
        table = arviz().compare(found).rename(columns={"elpd_loo": "elpd", "p_loo": "p"})
    # Versions differ in the sign of the difference and in how they say that an estimate is unreliable.
    table["elpd_diff"] = table["elpd_diff"].abs()
    table["warning"] = [bool(found[name].warning) for name in table.index]
    return table[["rank", "elpd", "p", "elpd_diff", "weight", "se", "dse", "warning"]]


def smoothed_log_weights(log_ratios: Array) -> tuple[Array, Array]:
    """Pareto-smoothed importance weights of independent draws.

    Args:
        log_ratios: (..., draw) ln target - ln proposal, up to a constant.

    Returns:
        log weights (..., draw) that sum to 1, and k-hat (...).

    Source: Vehtari et al. (2024), arXiv 1507.02646.
    """
    if _is_before_1():
        weights, shape = arviz().psislw(log_ratios)
    else:
        # It takes log likelihoods, whose ratios in leave-one-out cross-validation are their negatives.
        weights, shape = import_module("arviz_stats.base").array_stats.psislw(-log_ratios, r_eff=1.0, axis=-1)
    return np.asarray(weights), np.asarray(shape)


def rhat(draws: Array) -> Array:
    """Rank-normalized split R-hat (...) of Markov chains (chain, draw, ...): Vehtari et al. 2021, arXiv 1903.08008."""
    return _of_chains(arviz().rhat, draws)


def ess(draws: Array, method: str = "bulk") -> Array:
    """Effective number of draws (...), "bulk" or "tail", of Markov chains (chain, draw, ...): the same source."""
    return _of_chains(arviz().ess, draws, method=method)


def plot_forest(
    data: InferenceData, var_names: Names = None, *, probability: float = 0.9, coords: Mapping[str, Any] | None = None
) -> "Figure":
    """Intervals of each number: of half of the draws (thick) and of `probability` of them (thin).

    Module names are long: save the figure with ``bbox_inches="tight"``, which makes room for them.
    """
    require_fraction("probability", probability)
    options: dict[str, Any] = {"var_names": var_names, "coords": coords, "combined": True}
    if _is_before_1():
        axes = arviz().plot_forest(data, hdi_prob=probability, **options)
        return axes.ravel()[0].figure  # type: ignore[no-any-return]
    plots = arviz().plot_forest(data, ci_kind="hdi", ci_probs=(0.5, probability), backend="matplotlib", **options)
    return plots.viz["figure"].item()  # type: ignore[no-any-return]


def plot_ppc(data: InferenceData) -> "Figure":
    """Posterior predictive check of the labels: the share of each class in what is drawn and in what was observed.

    With ArviZ 0.x cumulative over the classes, since its histograms of whole numbers are easily misread; its steps are
    those of n - 1 rows, so for exact shares of few rows see `diagnostics.check_label_rates`. With 1.x counts.

    Raises:
        DataError: no group observed_data.
    """
    group(data, "observed_data")
    if not _is_before_1():
        plots = arviz().plot_ppc_rootogram(data, var_names=["y"], yscale="linear", backend="matplotlib")
        return plots.viz["figure"].item()  # type: ignore[no-any-return]
    # It takes the order of the draws from numpy's global generator.
    with seeded(0, torch.device("cpu")):
        axes = arviz().plot_ppc(data, var_names=["y"], kind="cumulative")
    names = group(data, "posterior_predictive")["class"].to_numpy()
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="class, and those before it", ylabel="share of the rows")
    return axes.figure  # type: ignore[no-any-return]


def _is_before_1() -> bool:
    return str(arviz().__version__).startswith("0.")


def _psis_loo(data: InferenceData) -> Any:
    group(data, "log_likelihood")
    # The draws are independent, so their relative efficiency is 1.
    return arviz().loo(data, pointwise=True, reff=1.0)


def _of_chains(diagnostic: Callable[..., xr.Dataset], draws: Array, **options: Any) -> Array:
    dims = ["chain", "draw", *(f"entry_{axis}" for axis in range(draws.ndim - 2))]
    return diagnostic(xr.Dataset({"x": (dims, draws)}), **options)["x"].to_numpy()
