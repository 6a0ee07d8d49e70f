"""All use of ArviZ: its container of draws, and those of its functions that are used here.

ArviZ 0.x keeps groups of draws in its `InferenceData`, ArviZ 1.x in an `xarray.DataTree`, and names, arguments,
defaults and columns of its functions changed. In front of this module it is the same with 0.23 and 1.x, which are both
tested: a group is asked for with `group`, and results have the columns and numbers given here. What releases of ArviZ
compute or draw differently is computed and drawn elsewhere: `importance`, `leave_one_out`, `plots`.

Draws of a guide are independent, one chain: their R-hat and effective sample size say nothing, and are not shown.
`rhat` and `ess` are for Markov chains.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_lora.checks import require_fraction
from bayes_lora.errors import DataError

InferenceData = Any  # arviz.InferenceData or xarray.DataTree
Names = Sequence[str] | None
Array = NDArray[np.float64]


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


def rhat(draws: Array) -> Array:
    """Rank-normalized split R-hat (...) of Markov chains (chain, draw, ...): Vehtari et al. 2021, arXiv 1903.08008."""
    return _of_chains(arviz().rhat, draws)


def ess(draws: Array, method: str = "bulk") -> Array:
    """Effective number of draws (...), "bulk" or "tail", of Markov chains (chain, draw, ...): the same source."""
    # The quantiles of the tail are a setting of ArviZ, with another default in each version.
    return _of_chains(arviz().ess, draws, method=method, prob=(0.05, 0.95) if method == "tail" else None)


def _is_before_1() -> bool:
    return str(arviz().__version__).startswith("0.")


def _of_chains(diagnostic: Callable[..., xr.Dataset], draws: Array, **options: Any) -> Array:
    dims = ["chain", "draw", *(f"entry_{axis}" for axis in range(draws.ndim - 2))]
    return diagnostic(xr.Dataset({"x": (dims, draws)}), **options)["x"].to_numpy()
