"""Whether fits of different seeds found the same posterior: their spread, in units of the posterior's own scale."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_lora.checks import require_count, require_positive, require_seed
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics.draws import RunningMoments, by_adapter
from bayes_lora.inference.guides.posterior_draw import Guide, posterior_draw, require_own_guide
from bayes_lora.models import BayesianLoRA

_Parts = tuple[Tensor, Tensor]  # mean and variance over draws, (adapter, entry) each


@dataclass(frozen=True)
class AdapterSpread:
    """Standard deviation between fits over the standard deviation within one, of one adapter.

    Attributes:
        adapter: its module name.
        weights: of the mixture weights pi, sorted within each draw: what alpha says.
        covariance: of the diagonal of Sigma: what v says.
        mean: of the entries of LoRA-A: what mu says.
    """

    adapter: str
    weights: float
    covariance: float
    mean: float


@dataclass(frozen=True)
class SeedSpread:
    """`AdapterSpread` of every adapter, in the order of `model.sites.names`.

    Attributes:
        adapters: one for each.
        num_fits: fits compared.
        max_ratio: the ratio from which fits count as different.
    """

    adapters: tuple[AdapterSpread, ...]
    num_fits: int
    max_ratio: float

    @property
    def flagged(self) -> bool:
        """Whether some ratio exceeds the largest allowed, or is no number."""
        return not self._worst[0] <= self.max_ratio

    @property
    def message(self) -> str:
        """In words."""
        ratio, parameter, name = self._worst
        verdict = "The fits do not agree" if self.flagged else "The fits agree"
        return (
            f"{verdict}: over {self.num_fits} seeds the posterior mean varies by at most {ratio:.3g} posterior "
            f"standard deviations ({parameter} of {name}); {self.max_ratio:g} is allowed."
        )

    @property
    def _worst(self) -> tuple[float, str, str]:
        found = [
            (getattr(adapter, parameter), parameter, adapter.adapter)
            for adapter in self.adapters
            for parameter in ("weights", "covariance", "mean")
        ]
        missing = [entry for entry in found if entry[0] != entry[0]]
        return missing[0] if missing else max(found)


def seed_spread(
    fits: Iterable[tuple[BayesianLoRA, Guide]], *, num_draws: int = 64, seed: int = 0, max_ratio: float = 0.5
) -> SeedSpread:
    """How far the posteriors of several fits lie apart, relative to how wide each of them is.

    For every entry x of an adapter's pi (sorted within a draw, since components have no order), diagonal of Sigma, and
    LoRA-A,

        ratio^2 = mean over entries of Var_fits(E[x | fit])  /  mean over entries and fits of Var(x | fit)

    from draws of each guide, the same streams for every fit; that the means are of finitely many draws adds at most
    about ``1 / sqrt(num_draws)``. At a ratio of .5, draws from all fits together would have 1.25 times the variance of
    one fit's.

    It can tell that one fit's posterior is not the answer that the next seed gives: its intervals for LoRA-A leave out
    what another run finds. It cannot tell that the answer they agree on is right: the guide's family has the same
    bias in every fit. It is no R-hat, whose limit 1 rests on chains that all converge to the posterior. And where
    LoRA-B is trained along, A is known only up to an invertible rank x rank matrix that B undoes, so its spread
    between seeds is large for fits that predict the same: compare post-hoc fits of one checkpoint, or look at
    predictions.

    Args:
        fits: (model, guide) of at least two fits that differ in their seeds alone. They are taken one after the other,
            so a generator that loads them keeps one in memory.
        num_draws: draws from each guide, at least 2.
        seed: of the draws.
        max_ratio: the ratio up to which fits count as the same.

    Raises:
        DataError: fewer than two fits, or fits of different adapters.
        ConfigurationError: an option out of range, or a guide of another model.

    Source: the within-run scale as in Gelman & Rubin, "Inference from iterative simulation using multiple sequences",
    Statistical Science 7 (1992), equation 1.

    Example:
        >>> spread = seed_spread((load_posterior(base(), folder) for folder in folders))  # doctest: +SKIP
        >>> spread.message  # doctest: +SKIP
    """
    require_count("num_draws", num_draws)
    require_seed("seed", seed)
    require_positive("max_ratio", max_ratio)
    if num_draws < 2:
        raise ConfigurationError("num_draws=1 gives no variance. Give num_draws=2 or more.")
    names: list[tuple[tuple[str, int, int], ...]] = []
    found: list[tuple[_Parts, tuple[_Parts, ...], tuple[_Parts, ...]]] = []
    for model, guide in fits:
        require_own_guide(model, guide)
        names.append(tuple((adapter.name, adapter.rank, adapter.in_features) for adapter in model.sites.adapters))
        if names[-1] != names[0]:
            raise DataError(
                f"fit {len(names)} has other adapters than the first one: {names[-1]} instead of {names[0]}. Compare "
                "fits of one network and one LoraConfig."
            )
        found.append(_moments(model, guide, num_draws, seed))
    if len(found) < 2:
        raise DataError(f"{len(found)} fits have no spread. Pass two or more that differ in their seeds.")
    weights = _ratio([fit[0] for fit in found])
    covariance = torch.cat([_ratio([fit[1][rank] for fit in found]) for rank in range(len(found[0][1]))])
    mean = torch.cat([_ratio([fit[2][group] for fit in found]) for group in range(len(found[0][2]))])
    rows = torch.stack([weights, covariance, mean], dim=-1).tolist()
    adapters = (AdapterSpread(name, *row) for (name, _, _), row in zip(names[0], rows, strict=True))
    return SeedSpread(tuple(adapters), len(found), max_ratio)


def _moments(
    model: BayesianLoRA, guide: Guide, num_draws: int, seed: int
) -> tuple[_Parts, tuple[_Parts, ...], tuple[_Parts, ...]]:
    """Mean and variance over draws: of pi, of Sigma's diagonal by rank, and of LoRA-A by group."""
    sites = model.sites
    of_weights = RunningMoments()
    of_covariances = {rank: RunningMoments() for rank in sites.ranks}
    of_columns = [RunningMoments() for _ in sites.groups]
    for index in range(num_draws):
        draw = posterior_draw(model, guide, seed, index)
        of_weights.add(by_adapter(model, draw.value("pi").sort(-1, descending=True).values))
        for rank, moments in of_covariances.items():
            diagonal = draw.value(f"Sigma_r{rank}").diagonal(dim1=-2, dim2=-1)
            moments.add(by_adapter(model, diagonal))
        with torch.no_grad():
            noises = model.perturbations(draw.latents)
            for group, noise, moments in zip(sites.groups, noises, of_columns, strict=True):
                moments.add((sites.means(group).mT + noise).flatten(1))
    return (
        _parts(of_weights),
        tuple(map(_parts, of_covariances.values())),
        tuple(map(_parts, of_columns)),
    )


def _parts(moments: RunningMoments) -> _Parts:
    return torch.as_tensor(moments.mean).cpu(), moments.variance.cpu()


def _ratio(parts: list[_Parts]) -> Tensor:
    """Between over within, (adapter,); 0 where nothing varies at all."""
    between = torch.stack([mean for mean, _ in parts]).var(0).mean(-1)
    within = torch.stack([variance for _, variance in parts]).mean((0, -1))
    return torch.where(between == 0, 0.0, between / within).sqrt()
