"""A guide without the noise of some adapters."""

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from bayes_lora.inference.guides.posterior_draw import Guide, site_values
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents


def without_noise(model: BayesianLoRA, guide: Guide, ablated: Tensor) -> Callable[[], Latents]:
    """The guide with ``A = mu`` for the adapters in the mask; it draws all noise all the same, so draws stay alike."""

    def conditioned() -> Latents:
        with poutine.block():
            values = site_values(prune_subsample_sites(poutine.trace(guide).get_trace()))
            latents = poutine.condition(model.sample_latents, data=values)()
        for group, columns in zip(model.sites.groups, latents.columns, strict=True):
            # Objective "paper": the site is the noise itself.
            centre = model.sites.means(group) if model.config.objective == "elbo" else torch.zeros_like(columns)
            first = len(model.sites.outer_shape)
            shape = (len(group), *(1,) * (columns.dim() - first - 1))
            mask = ablated[group.start : group.stop].to(columns.device).reshape(shape)
            values[model.sites.column_site(group)] = torch.where(mask, centre, columns)
        return poutine.condition(model.sample_latents, data=values)()  # type: ignore[no-any-return]

    return conditioned
