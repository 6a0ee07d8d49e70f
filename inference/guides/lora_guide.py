"""What a guide over LoRA-A is, and which kinds there are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor

from bayes_lora.choices import Draws
from bayes_lora.discovery import modules_of
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import guides
from bayes_lora.inference.guides.supported_elbos import refuse_unsupported_elbo
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents
from bayes_lora.precision import kept_precise

_KINDS: dict[str, type["LoRAGuide"]] = {}


class LoRAGuide(PyroModule):  # type: ignore[misc]
    """A family of posteriors over the LoRA-A of a model, which can be trained, saved and loaded.

    A subclass gives its parameters to the module, says in `sample` how the model's sites are drawn from them, and in
    `kind` under which name a saved posterior finds it again. A module of this package is found by that name without
    further ado, any other once it has been imported. One without a kind of its own cannot be told from its base.

    The parameters live in the module, never in Pyro's global store. The model is not registered as a submodule.

    Args:
        model: the model whose adapters this is the posterior of.

    Attributes:
        kind: its name in `bayes_lora.json`; None for what is no family itself.
        family: what it is, as a model card says it in Markdown.
        point: what the PEFT adapter beside it is, as a model card says it.
        about_point: the same as a sentence.
        unused_options: names of the options of `MonteCLoRAConfig` that do nothing under this guide.

    Raises:
        ConfigurationError: where a class is made, of a kind that another one has.
        UnsupportedELBOError: called by an ELBO under which the result would be another objective or an error.
    """

    kind: ClassVar[str | None] = None
    family: ClassVar[str] = "a guide of its own"
    point: ClassVar[str] = "mean adapter"
    about_point: ClassVar[str] = "Its mean is a plain PEFT adapter"
    unused_options: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = vars(cls).get("kind")
        if kind is None:
            return
        known = _KINDS.get(kind)
        # The same class is made again where a module is reloaded, or a notebook's cell run again.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigurationError(
                f"{cls.__qualname__} has kind={kind!r}, which {known.__module__}.{known.__qualname__} has already. A "
                "saved posterior finds its guide by it: choose another."
            )
        _KINDS[kind] = cls

    def __init__(self, model: BayesianLoRA) -> None:
        with pyro.settings.context(module_local_params=True):
            super().__init__()
        # In a tuple, so that the module system does not see it.
        self._model_reference = (model,)

    @property
    def model(self) -> BayesianLoRA:
        """The model this guide belongs to."""
        return self._model_reference[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Latents:
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Latents:
        """Sample the posterior; the batch is accepted, as Pyro passes it, and not looked at."""
        refuse_unsupported_elbo()
        return self.sample()

    def sample(self) -> Latents:
        """Open the model's sites, in its order, with the distributions of the posterior: see `LatentSites.sample`."""
        raise NotImplementedError

    @property
    def designs(self) -> tuple[Draws, ...]:
        """Designs of draws under which each draw alone still has the guide's distribution, the best first.

        "antithetic" where the noise of the adapters, given all else that is drawn, is symmetric about the guide's
        centre, "tetrahedral" where it is Gaussian: `GAUSSIAN_DESIGNS` are all. See `draw_design.source`.
        """
        return ("independent",)

    def combined(self, perturbations: Sequence[Sequence[Tensor]], weights: Sequence[float]) -> list[Tensor]:
        """The noise of several draws, as `BayesianLoRA.perturbations` gives it, summed about the guide's centre.

        c + sum_d w_d (P_d - c),    of each group; here the centre c is 0.
        """
        sums = [weights[0] * noise for noise in perturbations[0]]
        for weight, noises in zip(weights[1:], perturbations[1:], strict=True):
            sums = [torch.add(one, noise, alpha=weight) for one, noise in zip(sums, noises, strict=True)]
        return sums

    def copy_median_to_adapters(self) -> None:
        """Put the guide's centre into LoRA-A, where it is not there by itself, as it is with a guide centred at it."""

    def settings(self) -> dict[str, Any]:
        """What it takes besides the model to make this guide again, as JSON holds it: arguments of `from_settings`.

        Raises:
            ConfigurationError: this one cannot be described.
        """
        return {}

    @classmethod
    def from_settings(cls, model: BayesianLoRA, settings: Mapping[str, Any]) -> Self:
        """A guide of this kind at its start, with parameters of the shapes of the one that had these settings.

        Raises:
            TypeError, ConfigurationError: settings that it cannot have, or a model that it does not fit.
        """
        return cls(model, **settings)

    @classmethod
    def expected_shapes(cls, model: BayesianLoRA, settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor in the state dict of ``from_settings(model, settings)``, without making any.

        A saved posterior is held against it before memory is taken for what its files say.

        Raises:
            TypeError, ConfigurationError: settings that it cannot have.
        """
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(kept_precise(fn), recurse)
        return self


def guide_kinds() -> dict[str, type[LoRAGuide]]:
    """Every kind of guide there is, by the name that saved posteriors have for it."""
    for _ in modules_of(guides):
        pass  # importing one is what makes its classes known
    return dict(sorted(_KINDS.items()))
