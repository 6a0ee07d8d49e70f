"""Whether the mixture is one: the effective number of components under the posterior."""

from dataclasses import dataclass

import torch

from bayes_lora.checks import require_count, require_positive, require_seed
from bayes_lora.inference.diagnostics.draws import by_adapter
from bayes_lora.inference.guides.posterior_draw import Guide, posterior_draw, require_own_guide
from bayes_lora.models import BayesianLoRA


@dataclass(frozen=True)
class Mixture:
    """Effective number of components of every adapter, 1 to N.

    Attributes:
        adapters: module names.
        effective: posterior mean of 1 / sum_k pi_k^2 of each.
        num_components: N.
        least: the number below which a mixture of several components counts as collapsed.
    """

    adapters: tuple[str, ...]
    effective: tuple[float, ...]
    num_components: int
    least: float

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Adapters of which one component has all the weight."""
        if self.num_components == 1:
            return ()
        return tuple(
            name for name, number in zip(self.adapters, self.effective, strict=True) if not number >= self.least
        )

    @property
    def flagged(self) -> bool:
        """Whether the mixture of some adapter has collapsed."""
        return bool(self.collapsed)

    @property
    def message(self) -> str:
        """In words."""
        if self.num_components == 1:
            return "There is one component, so there is no mixture to collapse."
        said = (
            f"Of {self.num_components} components {min(self.effective):.2f} to {max(self.effective):.2f} are in use "
            "(effective number)."
        )
        if self.flagged:
            said += (
                f" The mixture has collapsed (below {self.least:g}) for {', '.join(self.collapsed)}: fit with "
                "num_components=1, or with a larger prior_concentration."
            )
        return said


def mixture(model: BayesianLoRA, guide: Guide, *, num_draws: int = 64, seed: int = 0, least: float = 1.1) -> Mixture:
    """Effective number of components E[1 / sum_k pi_k^2] of every adapter under the posterior.

    It is N where all weights are equal, and 1 where one component has all the weight.

    It can tell that the mixture is in effect a single Gaussian, and that its components cost parameters for nothing.
    It cannot tell that this is wrong: given pi and Sigma the mixture's sum is a Gaussian whatever its weights, and
    one component may be all the data ask for. A sparse mixture uses one component at a time by design.

    Args:
        model: the model.
        guide: its guide, or any Pyro callable that samples the model's latent sites.
        num_draws: draws that the mean is over.
        seed: of the draws.
        least: the number below which a mixture counts as collapsed.

    Raises:
        ConfigurationError: an option out of range, or a guide of another model.

    Source: the order-2 diversity of Hill (1973), of the weights of arXiv 2411.04358, Algorithm 1.

    Example:
        >>> mixture(model, guide).effective  # doctest: +SKIP
        (2.61, 2.58)
    """
    require_own_guide(model, guide)
    require_count("num_draws", num_draws)
    require_seed("seed", seed)
    require_positive("least", least)
    numbers = [
        by_adapter(model, posterior_draw(model, guide, seed, index).latents.squared_weights.reciprocal()).mean(-1)
        for index in range(num_draws)
    ]
    effective = torch.stack(numbers).double().mean(0).tolist()
    return Mixture(model.sites.names, tuple(effective), model.config.num_components, least)
