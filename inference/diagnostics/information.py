"""What the data changed: divergence of the posterior from the prior, and how far its moments moved, per adapter."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_lora.checks import require_count, require_non_negative, require_seed
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.diagnostics.draws import RunningMoments, by_adapter
from bayes_lora.inference.guides.posterior_draw import Guide, PosteriorDraw, posterior_draw, require_own_guide
from bayes_lora.metrics.bootstrap import standard_error
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.bayesian_lora import term_of
from bayes_lora.models.latent_sites import KL_TERMS

_KL_TERMS = tuple(dict.fromkeys(KL_TERMS.values()))


@dataclass(frozen=True)
class AdapterChange:
    """What one adapter's posterior is, seen from its prior.

    Attributes:
        adapter: its module name.
        kl_dirichlet: KL(q(pi) || p(pi)), nats.
        kl_wishart: KL(q(Sigma) || p(Sigma)), nats.
        kl_normal: KL of the columns, nats: of A under objective "elbo", of the noise S under "paper".
        standard_error: of kl_normal, over draws; 0 where the KL does not depend on the draw.
        shift: root mean square of the columns' posterior mean, in prior standard deviations.
        variance_ratio: posterior variance of the columns over their prior variance, mean over the entries.
    """

    adapter: str
    kl_dirichlet: float
    kl_wishart: float
    kl_normal: float
    standard_error: float
    shift: float
    variance_ratio: float

    @property
    def total(self) -> float:
        """Of the three KLs, nats."""
        return self.kl_dirichlet + self.kl_wishart + self.kl_normal


@dataclass(frozen=True)
class PriorToPosterior:
    """`AdapterChange` of every adapter, in the order of `model.sites.names`.

    Attributes:
        adapters: one for each.
        least: nats below which an adapter counts as unchanged.
    """

    adapters: tuple[AdapterChange, ...]
    least: float

    @property
    def total(self) -> float:
        """KL of the whole posterior from the whole prior, nats."""
        return sum(adapter.total for adapter in self.adapters)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Adapters whose posterior is their prior, or whose divergence is no number."""
        return tuple(adapter.adapter for adapter in self.adapters if not adapter.total >= self.least)

    @property
    def flagged(self) -> bool:
        """Whether some adapter's posterior is its prior, or a divergence is not finite."""
        return bool(self.unchanged) or not math.isfinite(self.total)

    @property
    def message(self) -> str:
        """In words."""
        if not math.isfinite(self.total):
            names = [adapter.adapter for adapter in self.adapters if not math.isfinite(adapter.total)]
            return f"The divergence from the prior is not finite for {', '.join(names)}: the posterior is degenerate."
        largest = max(self.adapters, key=lambda adapter: adapter.total)
        said = (
            f"The posterior is {self.total:.4g} nats from its prior; the most of one adapter is {largest.total:.4g}, "
            f"of {largest.adapter}."
        )
        if self.unchanged:
            said += f" Nothing was learned (below {self.least:g} nats) about {', '.join(self.unchanged)}."
        return said


def prior_to_posterior(
    model: BayesianLoRA, guide: Guide, *, num_draws: int = 32, seed: int = 0, least: float = 0.1
) -> PriorToPosterior:
    """KL(q || p) of every adapter's sites in nats, and how far the columns' mean and variance moved.

        KL_D = KL(Dir(alpha) || Dir(a0)),  KL_W = KL(Wishart(nu, diag v) || Wishart(nu, c I)),
        KL_N = sum over columns (components, outer draws) of KL(q(column | pi, Sigma) || p(column))

    in closed form, from the distributions of the sites themselves; KL_N depends on the drawn pi and Sigma, so it is a
    mean over draws. A site without a closed form, such as the joint draw of an autoguide, has the mean of
    ``ln q - ln p`` over the draws. With the sites' weights, these are the terms of `ItemizedELBO`. Where the guide
    leaves a site at its prior, its KL is 0.

    It can tell which adapters the fit changed, and by how much: ``exp(-KL)`` is the order of the prior's mass where
    the posterior lives. It cannot tell whether the change is right: a posterior that is too narrow has a large KL as
    well. Under objective "elbo" the KL counts the trained mean, so a well trained adapter is far from a prior at 0.
    Under "paper" it is of the noise alone, its weight in the loss is not that of a prior, and KL_N is not 0 even
    for a guide at its start, since Sigma is random there.

    Args:
        model: the model.
        guide: its guide, or any Pyro callable that samples the model's latent sites.
        num_draws: draws, at least 2, that the moments and KL_N are means over.
        seed: of the draws.
        least: nats below which an adapter counts as unchanged.

    Raises:
        ConfigurationError: an option out of range, or a guide of another model.

    Source: docs/theory.md, "The objective".

    Example:
        >>> change = prior_to_posterior(model, guide)  # doctest: +SKIP
        >>> {adapter.adapter: adapter.kl_normal for adapter in change.adapters}  # doctest: +SKIP
    """
    require_own_guide(model, guide)
    require_count("num_draws", num_draws)
    require_seed("seed", seed)
    require_non_negative("least", least)
    if num_draws < 2:
        raise ConfigurationError("num_draws=1 gives no variance. Give num_draws=2 or more.")
    columns = [model.sites.column_site(group) for group in model.sites.groups]
    kls, moments = [], {site: RunningMoments() for site in columns}
    for index in range(num_draws):
        draw = posterior_draw(model, guide, seed, index)
        kls.append(_kl_terms(model, draw))
        for site in columns:
            moments[site].add(draw.value(site))
    terms = torch.stack(kls)  # (draw, term, adapter)
    errors = standard_error(terms[:, 2])
    shift, ratio = [], []
    for site in columns:
        prior = draw.prior.nodes[site]["fn"].variance
        shift.append(by_adapter(model, torch.as_tensor(moments[site].mean).square() / prior).mean(-1).sqrt())
        ratio.append(by_adapter(model, moments[site].variance / prior).mean(-1))
    rows = torch.stack([*terms.mean(0), errors, torch.cat(shift), torch.cat(ratio)], dim=-1)
    changes = (AdapterChange(name, *row) for name, row in zip(model.sites.names, rows.tolist(), strict=True))
    return PriorToPosterior(tuple(changes), least)


def _kl_terms(model: BayesianLoRA, draw: PosteriorDraw) -> Tensor:
    """KL_D, KL_W and KL_N of every adapter at this draw, (term, adapter), in double precision."""
    found: dict[str, list[Tensor]] = {term: [] for term in _KL_TERMS}
    # In this order the sites of a kind go through the adapters from first to last.
    for name in [*model.sites.shaping_sites, *map(model.sites.column_site, model.sites.groups)]:
        prior, posterior = draw.prior.nodes[name], draw.posterior.nodes.get(name)
        shape = prior["fn"].batch_shape
        kl = prior["value"].new_zeros(shape) if posterior is None else _site_kl(posterior, prior).expand(shape)
        found[term_of(name)].append(by_adapter(model, kl.double()).sum(-1))
    return torch.stack([torch.cat(found[term]) for term in _KL_TERMS])


def _site_kl(posterior: dict[str, Any], prior: dict[str, Any]) -> Tensor:
    """KL of one site's posterior from its prior, of the site's batch shape; without a closed form, at the draw."""
    q, p = posterior["fn"], prior["fn"]
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return q.log_prob(posterior["value"]) - p.log_prob(posterior["value"])  # type: ignore[no-any-return]
