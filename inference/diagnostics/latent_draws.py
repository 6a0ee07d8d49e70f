"""Draws of the latent sites, of a guide or of the prior, and what is computed from them, with named dimensions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Delta
from torch import Tensor

from bayes_lora.adapters import AdapterGroup
from bayes_lora.errors import AdapterError
from bayes_lora.inference.guides.posterior_draw import PosteriorDraw, posterior_draw
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents

# What the plots write beside their axes, by the first part of a variable's name.
_LONG_NAMES = {
    "pi": "mixture weight",
    "effective": "effective number of components",
    "entropy": "entropy of the mixture weights",
    "Sigma": "covariance of the noise",
    "correlation": "correlation of the noise",
    "noise": "standard deviation of LoRA-A's entries",
    "relative": "noise relative to the mean, |A - mu| / |mu|",
    "A": "LoRA-A",
}


def latent_draws(
    model: BayesianLoRA, program: Callable[[], Any], num_samples: int, seed: int, adapters: Sequence[str] = ()
) -> xr.Dataset:
    """pi, Sigma and what follows from them, under many draws; variables as `to_inference_data` lists them.

    Draw s is that of ``predict(..., draws="independent", seed=seed)``. No more than one draw of the noise is in memory
    at a time.

    Args:
        model: the model.
        program: its guide, any Pyro callable that samples its latent sites, or ``model.sample_latents`` for the prior.
        num_samples: number of draws.
        seed: of all of them.
        adapters: names of the adapters whose LoRA-A is kept.

    Raises:
        AdapterError: a name that no adapter has.

    Example:
        >>> latent_draws(model, guide, 100, seed=0)["pi"]  # doctest: +SKIP
    """
    kept = _places(model, adapters)
    draws = [_draw(model, posterior_draw(model, program, seed, draw), kept) for draw in range(num_samples)]
    values = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    values["effective_components"] = 1 / values["pi"].square().sum(-1)
    values["entropy_pi"] = torch.special.entr(values["pi"]).sum(-1)
    for rank in model.sites.ranks:
        covariance = values[f"Sigma_r{rank}"]
        deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        values[f"correlation_r{rank}"] = covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))
    dims = _dims(model, kept)
    variables = {
        name: (("chain", "draw", *dims[name]), values[name].unsqueeze(0).cpu().numpy(), _attributes(name))
        for name in dims
        if name in values
    }
    used = {"chain", "draw"}.union(*(dims[name] for name in variables))
    coords = {"chain": [0], "draw": np.arange(num_samples), **_coords(model, kept)}
    return xr.Dataset(variables, {dim: values for dim, values in coords.items() if dim in used})


def _places(model: BayesianLoRA, names: Sequence[str]) -> dict[str, list[int]]:
    """Where the named adapters stand in their groups, by the group's suffix; groups without one are left out."""
    known = model.sites.names
    for name in names:
        if name not in known:
            shown = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
            raise AdapterError(f"no adapter is named {name!r}. Take names from model.sites.names: {shown}.")
    places = {
        group.suffix: [place for place, name in enumerate(known[group.start : group.stop]) if name in names]
        for group in model.sites.groups
    }
    return {suffix: found for suffix, found in places.items() if found}


@torch.no_grad()
def _draw(model: BayesianLoRA, draw: PosteriorDraw, kept: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """One draw of everything that cannot be computed from pi and Sigma afterwards, and of these."""
    sites, latents = model.sites, draw.latents
    found = {"pi": latents.weights}
    for rank, members in sites.ranks.items():
        shape = (*sites.outer_shape, members.stop - members.start, rank, rank)
        found[f"Sigma_r{rank}"] = draw.value(f"Sigma_r{rank}").reshape(shape)
    relative: list[Tensor] = []
    deviations: dict[int, list[Tensor]] = {}
    for group, noise in zip(sites.groups, model.perturbations(latents), strict=True):
        mean = sites.means(group).mT
        relative.append(noise.flatten(1).norm(dim=-1) / mean.flatten(1).norm(dim=-1))
        site = sites.column_site(group)
        columns = (draw.posterior if site in draw.posterior.nodes else draw.prior).nodes[site]["fn"]
        # A Delta is one draw of a joint density, which says nothing of its spread.
        if not isinstance(columns, Delta):
            deviations.setdefault(group.rank, []).append(_row_deviation(model, group, columns, latents))
        if group.suffix in kept:
            found["A" + group.suffix] = (mean + noise)[kept[group.suffix]]
    found["relative_noise"] = torch.cat(relative)
    return found | {f"noise_std_r{rank}": torch.cat(parts) for rank, parts in deviations.items()}


def _row_deviation(model: BayesianLoRA, group: AdapterGroup, columns: Any, latents: Latents) -> Tensor:
    """Standard deviation of each row of A given pi and Sigma, (adapter, rank); see `BayesianLoRA.perturbations`.

    Args:
        columns: the distribution of the group's site, of S or of A.
    """
    config = model.config
    variance = columns.variance.mean(-2)  # over columns: ([outer,] adapter, [component,] rank)
    if config.objective == "elbo":
        return variance.sqrt()  # type: ignore[no-any-return]
    if model.sites.component_shape:
        variance = variance.mean(-2)  # the components share one covariance
    if config.mixture == "dense":
        variance = variance * latents.squared_weights[..., group.start : group.stop, None]
    if model.sites.outer_shape:
        variance = variance.mean(0) / config.num_outer_samples
    return model.group_scale(group).unsqueeze(-1) * variance.sqrt()  # type: ignore[no-any-return]


def _dims(model: BayesianLoRA, kept: Mapping[str, list[int]]) -> dict[str, tuple[str, ...]]:
    """The dimensions of each variable, after chain and draw, in the order in which they are shown."""
    sites = model.sites
    outer = ("outer",) if sites.outer_shape else ()
    found: dict[str, tuple[str, ...]] = {
        "pi": (*outer, "adapter", "component"),
        "effective_components": (*outer, "adapter"),
        "entropy_pi": (*outer, "adapter"),
        "relative_noise": ("adapter",),
    }
    for rank in sites.ranks:
        adapter, row, other = f"adapter_r{rank}", f"rank_r{rank}", f"rank_other_r{rank}"
        found[f"noise_std_r{rank}"] = (adapter, row)
        found[f"Sigma_r{rank}"] = (*outer, adapter, row, other)
        found[f"correlation_r{rank}"] = (*outer, adapter, row, other)
    for group in sites.groups:
        if group.suffix in kept:
            found["A" + group.suffix] = (
                "adapter" + group.suffix,
                f"rank_r{group.rank}",
                f"column_n{group.in_features}",
            )
    return found


def _coords(model: BayesianLoRA, kept: Mapping[str, list[int]]) -> dict[str, Any]:
    """Module names of adapters; everything else counts from 1."""
    sites = model.sites
    names = np.array(sites.names)
    found: dict[str, Any] = {
        "outer": _count(model.config.num_outer_samples),
        "adapter": names,
        "component": _count(model.config.num_components),
    }
    for rank, members in sites.ranks.items():
        found[f"adapter_r{rank}"] = names[members]
        found[f"rank_r{rank}"] = found[f"rank_other_r{rank}"] = _count(rank)
    for group in sites.groups:
        if group.suffix in kept:
            found["adapter" + group.suffix] = names[group.start : group.stop][kept[group.suffix]]
            found[f"column_n{group.in_features}"] = _count(group.in_features)
    return found


def _count(number: int) -> Any:
    return np.arange(1, number + 1)


def _attributes(name: str) -> dict[str, str]:
    stem = name.split("_")[0]
    return {"long_name": _LONG_NAMES[stem]} | ({"units": "nats"} if stem == "entropy" else {})
