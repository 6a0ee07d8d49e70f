"""One draw of the posterior, beside the prior of the same sites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents
from bayes_lora.randomness import seeded, stream

Guide = Callable[..., Any]


@dataclass(frozen=True)
class PosteriorDraw:
    """A draw of the guide.

    Attributes:
        posterior: the guide's sites.
        prior: the model's sites, with the values of the draw.
        latents: the values again, as `BayesianLoRA.perturbations` takes them.
    """

    posterior: Trace
    prior: Trace
    latents: Latents

    def value(self, site: str) -> Tensor:
        """The value of one of the model's sites."""
        return self.prior.nodes[site]["value"]  # type: ignore[no-any-return]


@torch.no_grad()
def posterior_draw(
    model: BayesianLoRA, guide: Guide, seed: int, index: int, *, given: Mapping[str, Tensor] | None = None
) -> PosteriorDraw:
    """Draw number `index` under `seed`: the one that `predict(..., draws="independent", seed=seed)` has there too.

    The global generators are left as they were.

    Args:
        model: the model.
        guide: its guide, or any Pyro callable that samples the model's latent sites. A site that it leaves out is
            drawn from the prior.
        seed: of all draws.
        index: of this one.
        given: values of sites that are not drawn.
    """
    with poutine.block(), seeded(stream(seed, index), model.sites.example.device):
        conditioned = poutine.condition(guide, data=dict(given)) if given else guide
        drawn = prune_subsample_sites(poutine.trace(conditioned).get_trace())
        with poutine.trace() as recorder:
            latents = poutine.condition(model.sample_latents, data=site_values(drawn))()
    return PosteriorDraw(drawn, prune_subsample_sites(recorder.trace), latents)


def require_own_guide(model: BayesianLoRA, guide: Guide) -> None:
    """Raise if the guide says that it belongs to another model.

    Raises:
        ConfigurationError: it does.
    """
    if getattr(guide, "model", model) is not model:
        raise ConfigurationError("the guide belongs to another model. Pass the guide that was built with this one.")


def site_values(trace: Trace) -> dict[str, Tensor]:
    """Value of every sample site, observed or not: a guide that was itself conditioned has observed ones."""
    return {name: trace.nodes[name]["value"] for name in (*trace.stochastic_nodes, *trace.observation_nodes)}
