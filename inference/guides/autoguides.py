"""Pyro's autoguides as posteriors over LoRA-A."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.guides import AutoNormalizingFlow
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroParam
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import register_kl

from bayes_lora.checks import require_choice, require_count, require_positive
from bayes_lora.choices import GAUSSIAN_DESIGNS, Draws
from bayes_lora.distributions.column_normal import ColumnNormal
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.guides.adapter_guide import AdapterGuide
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents


def autoguide(
    model: BayesianLoRA, factory: Callable[..., AutoGuide], *, init_scale: float | None = None, **options: Any
) -> "AutoAdapterGuide":
    """A Pyro autoguide over LoRA-A, centred at the network's LoRA-A, ready for `fit`, `predict` and `SVI`.

    The guide has a location of its own from here on, and LoRA-A no longer is what is learned: its weights are frozen
    (``requires_grad`` off), and stay where the guide started until `AutoAdapterGuide.copy_median_to_adapters` puts the
    guide's centre there. Train LoRA first, then come here. LoRA-B and the head go on learning with the guide.

    Autoguides know nothing of a KL temperature or a number of examples: used bare, their part of the ELBO would weigh
    n_train / kl_temperature times too much, silently. This one has the weight of the model's own sites.

    A joint autoguide is over all adapters together: `AutoLowRankMultivariateNormal` keeps rank + 2 numbers for each
    entry of LoRA-A, `AutoMultivariateNormal` as many as LoRA-A has entries. Random starting values are drawn from
    torch's global generator.

    Args:
        model: a model of objective "elbo".
        factory: `AutoNormal`, `AutoDiagonalNormal`, `AutoLowRankMultivariateNormal`, `AutoMultivariateNormal`,
            `AutoDelta`, or whatever makes an autoguide from a model and an `init_loc_fn`.
        init_scale: standard deviation at the start, where the autoguide has one; None is `config.sample_scale`.
        options: the factory's own, such as `rank`.

    Raises:
        ConfigurationError: objective "paper", an init_scale out of range or for an autoguide that has none, or an
            autoguide that cannot start at given values.

    Example:
        >>> guide = autoguide(model, AutoLowRankMultivariateNormal, init_scale=1e-3, rank=8)  # doctest: +SKIP
        >>> fit(model, guide, dataset)  # doctest: +SKIP
    """
    sites = model.sites
    # Contiguous, since AutoNormal and AutoDelta take them as parameters, and the Trainer saves no others.
    centre = {sites.column_site(group): sites.means(group).detach().contiguous() for group in sites.groups}
    starts = {"init_loc_fn": init_to_value(values=centre), **_init_scale(model, factory, init_scale)}
    guide = AutoAdapterGuide(model, lambda prior: factory(prior, **starts, **options))
    for adapter in sites.adapters:
        adapter.linear.weight.requires_grad_(False)
    return guide


def adapters_only(model: BayesianLoRA) -> Callable[[], Latents]:
    """The prior over LoRA-A alone, as a Pyro model without arguments: its sites are those of A, and no others.

    pi and Sigma are drawn and hidden; the prior of A does not depend on them. It is what an autoguide looks at to
    learn names and shapes, and takes no pass of the network. It has no likelihood: the model for an ELBO is `model`.
    """
    return poutine.block(model.sample_latents, hide=list(model.sites.shaping_sites))  # type: ignore[no-any-return]


class AutoAdapterGuide(AdapterGuide):
    """An autoguide over LoRA-A, in the sites, plates and weights of the model; see `autoguide`, which makes it.

    Each step it lets the autoguide draw A and compute ``ln q(A)``, both unseen from outside, and opens the model's
    sites with that draw. So no auxiliary sites are left for an ELBO to forget, and the KL is the one-draw estimate
    ``ln q(A) - ln p(A)``, which is what Pyro itself makes of any autoguide.

    Args:
        model: a model of objective "elbo".
        build: makes the autoguide, given `adapters_only(model)`.

    Attributes:
        auto: the autoguide. Call this guide rather than it: alone, its parameters would go to Pyro's global store.
    """

    kind = "autoguide"
    family = "an autoguide of Pyro"
    # LoRA-A stays where the guide started.
    point = "PEFT adapter"
    about_point = (
        "Beside it is a plain PEFT adapter, the one that the guide started at, or its centre where "
        "`copy_median_to_adapters()` was called before saving"
    )
    unused_options = AdapterGuide.unused_options | {"sample_scale"}

    def __init__(self, model: BayesianLoRA, build: Callable[[Callable[[], Latents]], AutoGuide]) -> None:
        super().__init__(model)
        with pyro.settings.context(module_local_params=True), poutine.block():
            self.auto = build(adapters_only(model))
            self.auto()  # an autoguide makes its parameters when it is first called
            _announce_parameters(self.auto)

    def settings(self) -> dict[str, Any]:
        """The autoguide's name, and its rank where it has one."""
        name = type(self.auto).__name__
        if type(self.auto) is not _AUTOGUIDES.get(name):
            raise ConfigurationError(
                f"a saved posterior knows the autoguides {', '.join(_AUTOGUIDES)}, and this one is a {name}. Save the "
                "guide's state_dict() with safetensors, and the network with save_pretrained."
            )
        return {"autoguide": name} | ({"rank": self.auto.rank} if name == _LOW_RANK else {})

    @classmethod
    def from_settings(cls, model: BayesianLoRA, settings: Mapping[str, Any]) -> "AutoAdapterGuide":
        """As `autoguide` makes it, at an `init_scale` where there is one; LoRA-A is frozen from here on."""
        start = {name: value for name, value in settings.items() if name == "init_scale"}
        name, options = _checked({name: value for name, value in settings.items() if name not in start})
        return autoguide(model, _AUTOGUIDES[name], **start, **options)

    @classmethod
    def expected_shapes(cls, model: BayesianLoRA, settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """By site where the autoguide takes the sites apart, else over all entries of LoRA-A as one vector."""
        name, options = _checked(settings)
        sites = model.sites
        by_site: dict[str, tuple[int, ...]] = {
            sites.column_site(of): (len(of), of.in_features, of.rank) for of in sites.groups
        }
        size = sum(math.prod(shape) for shape in by_site.values())
        if name in ("AutoNormal", "AutoDelta"):
            parts = ("locs.", "scales.") if name == "AutoNormal" else ("",)
            found = {part + site: shape for part in parts for site, shape in by_site.items()}
        else:
            found = {"loc": (size,), "scale": (size,)}
            if name == "AutoMultivariateNormal":
                found["scale_tril"] = (size, size)
            elif name == _LOW_RANK:
                found["cov_factor"] = (size, options["rank"])
        return {f"auto.{parameter}_unconstrained": shape for parameter, shape in found.items()}

    def columns(self) -> dict[str, "JointDraw"]:
        """The autoguide's draw of each group's columns, with its log density."""
        with poutine.block(hide_fn=_is_sample), poutine.trace() as recorder:
            self.auto()
        trace = prune_subsample_sites(recorder.trace)
        sites = self.model.sites
        draws = {name: trace.nodes[name]["value"] for name in map(sites.column_site, sites.groups)}
        # A joint density belongs to no column: every column carries the same share, and the shares sum to it.
        share = trace.log_prob_sum() / sum(draw[..., 0].numel() for draw in draws.values())
        return {name: JointDraw(draw, share.expand(draw.shape[:-1]), event_dim=1) for name, draw in draws.items()}

    def median(self) -> dict[str, Tensor]:
        """The autoguide's centre by site, (adapter, column, rank)."""
        with pyro.settings.context(module_local_params=True), poutine.block():
            return self.auto.median()  # type: ignore[no-any-return]

    @property
    def designs(self) -> tuple[Draws, ...]:
        """Those of Pyro that a saved posterior can name are Gaussians about their median, or a point."""
        return GAUSSIAN_DESIGNS if type(self.auto) in _AUTOGUIDES.values() else super().designs

    @torch.no_grad()
    def combined(self, perturbations: Sequence[Sequence[Tensor]], weights: Sequence[float]) -> list[Tensor]:
        """About the autoguide's centre, which need not be LoRA-A's."""
        sites, median = self.model.sites, self.median()
        centres = [(median[sites.column_site(group)] - sites.means(group)).mT for group in sites.groups]
        sums, rest = super().combined(perturbations, weights), 1 - sum(weights)
        return [torch.add(one, centre, alpha=rest) for one, centre in zip(sums, centres, strict=True)]

    @torch.no_grad()
    def copy_median_to_adapters(self) -> None:
        """Put the autoguide's centre into LoRA-A, so that the PEFT model and predictions `at_mean` are there."""
        sites, median = self.model.sites, self.median()
        for group in sites.groups:
            adapters = sites.adapters[group.start : group.stop]
            for adapter, value in zip(adapters, median[sites.column_site(group)], strict=True):
                weight = adapter.linear.weight
                weight.copy_(value.mT.reshape(weight.shape))


# The autoguides that a saved posterior can name.
_LOW_RANK = AutoLowRankMultivariateNormal.__name__
_AUTOGUIDES: dict[str, type[AutoGuide]] = {
    of.__name__: of
    for of in (AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoDelta)
}


def _checked(settings: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """The autoguide's name and options of saved settings.

    Raises:
        ConfigurationError: they are not what `AutoAdapterGuide.settings` gives.
    """
    name, options = settings.get("autoguide"), {key: value for key, value in settings.items() if key != "autoguide"}
    require_choice("autoguide", name, tuple(_AUTOGUIDES))
    expected = {"rank"} if name == _LOW_RANK else set()
    if options.keys() != expected:
        raise ConfigurationError(f"{name} has the settings {sorted(expected)}, not {sorted(options)}.")
    for option, value in options.items():
        require_count(option, value)
    return str(name), options


class JointDraw(Delta):  # type: ignore[misc]
    """A draw together with its share of the log density of the joint distribution that it came from."""


@register_kl(JointDraw, ColumnNormal)  # type: ignore[untyped-decorator]
def _kl_joint_draw_column_normal(q: JointDraw, p: ColumnNormal) -> Tensor:
    """ln q - ln p at the draw, (adapter, column); Pyro's KL of a Delta leaves the density out."""
    return q.log_density - p.log_prob(q.v)  # type: ignore[no-any-return]


def _announce_parameters(auto: AutoGuide) -> None:
    """Make plain Parameters PyroParams: kept in a module, only those say to `SVI.step` what to optimize."""
    for module in auto.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not name.endswith("_unconstrained"):
                setattr(module, name, PyroParam(parameter.detach()))


def _is_sample(message: Any) -> bool:
    return bool(message["type"] == "sample")


def _init_scale(model: BayesianLoRA, factory: Callable[..., AutoGuide], init_scale: float | None) -> dict[str, float]:
    """The argument `init_scale` for the factory, where it takes one.

    Raises:
        ConfigurationError: it takes none and one was given, or its autoguides cannot be used here at all.
    """
    name = getattr(factory, "__name__", repr(factory))
    accepted = inspect.signature(factory).parameters
    kind = factory if isinstance(factory, type) else AutoGuide
    if issubclass(kind, AutoNormalizingFlow) or "init_loc_fn" not in accepted:
        raise ConfigurationError(
            f"{name} cannot start at given values, so it would forget the trained LoRA-A. Use AutoNormal, "
            "AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal or AutoDelta."
        )
    if issubclass(kind, AutoLaplaceApproximation):
        raise ConfigurationError(
            f"{name} takes the Hessian of the model's log density, which here is one per training example, so its "
            "covariance would be n_train times too large. Use AutoDelta for the point estimate."
        )
    if "init_scale" not in accepted:
        if init_scale is not None:
            raise ConfigurationError(f"{name} has no init_scale. Drop init_scale={init_scale!r}.")
        return {}
    scale = model.config.sample_scale if init_scale is None else init_scale
    require_positive("init_scale", scale)
    return {"init_scale": float(scale)}
