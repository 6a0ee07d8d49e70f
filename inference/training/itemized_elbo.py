"""The loss as a sum of named terms: `TraceMeanField_ELBO` itemized, and without unused densities."""

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine import Trace
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_lora.checks import require_choice
from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, DataError, UnsupportedELBOError
from bayes_lora.inference.guides.autoguides import AutoAdapterGuide
from bayes_lora.inference.guides.draw_design import design_of, source
from bayes_lora.inference.guides.lora_guide import LoRAGuide
from bayes_lora.models.bayesian_lora import term_of


class ItemizedELBO(ELBO):  # type: ignore[misc]
    """Negative evidence lower bound with analytic KLs, itemized.

        loss = - sum_{observed} scale log p  +  sum_{latent} scale KL(q || p)

    Equal to `pyro.infer.TraceMeanField_ELBO`, whose trace also evaluates the log density of every latent site, a
    cost that grows with the size of the noise, only to leave it unused. A latent site without a registered KL takes
    ``log q - log p`` at the draw instead.

    With several particles they are antithetic pairs where the guide is symmetric, see `draw_design.source`: the second
    of a pair has the columns of the first mirrored about their mean, with gradients. Of the noise of the likelihood's
    gradient, what is odd in the draw cancels, which is most of it. A pair has one pi and one Sigma, so that terms of
    these vary as with a single draw (take normal_kl="expected"). `bayes-lora bench --suite gradients` measures both.

    Args:
        num_particles: draws that the loss is the mean over, a pass of the network each.
        draws: "antithetic" or "independent"; None is antithetic where the guide says that it is symmetric and its
            columns have a mean, as those of all but autoguides do.

    Raises:
        ConfigurationError: other draws; when called: antithetic draws of a guide that is not like that.
        UnsupportedELBOError: a draw of the guide does not follow its parameters (`has_rsample` is false), so that no
            gradient would reach them: the first term would have none, and nobody would notice. Pyro's raises as well.
            Train such a guide with `pyro.infer.Trace_ELBO`, which has the estimator for it.
        DataError: a site is neither observed nor in the guide.

    Attributes:
        nll_weight: of the likelihood's term, for a batch that is a part of a step: what it observes, by the mean over
            the step's batches, since the mean of means is not that of all where batches observe unequally much.
        terms: of the last loss, by name (`bayes_lora.models.bayesian_lora.LOSS_TERMS`), detached scalars that
            sum to the loss, averaged over particles.

    Example:
        >>> elbo = ItemizedELBO()
        >>> loss = elbo(model, guide)(**batch)  # doctest: +SKIP
        >>> elbo.terms["nll"]  # doctest: +SKIP
    """

    def __init__(self, num_particles: int = 1, draws: Draws | None = None) -> None:
        super().__init__(num_particles=num_particles)
        if draws is not None:
            require_choice("draws", draws, ("antithetic", "independent"))
        self.draws = draws
        self.nll_weight = 1.0
        self.terms: dict[str, Tensor] = {}

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        if self.num_particles == 1 or _design(guide, self.draws) == "independent":
            yield from super()._get_traces(model, guide, args, kwargs)
            return
        for particle in range(self.num_particles):
            if source("antithetic", particle).block == particle:
                model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
            else:
                guide_trace = _mirrored(guide, guide_trace)
                model_trace = self._replayed(model, guide_trace, args, kwargs)
            yield model_trace, guide_trace

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with _Recorder() as guide_recorder:
            guide(*args, **kwargs)
        return self._replayed(model, guide_recorder.trace, args, kwargs), guide_recorder.trace

    def _replayed(self, model: Any, guide_trace: Trace, args: Any, kwargs: Any) -> Trace:
        with _Recorder() as recorder, ReplayMessenger(trace=guide_trace):
            model(*args, **kwargs)
        return recorder.trace

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a differentiable scalar; sets `terms`."""
        totals: dict[str, Tensor] = {}
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            for name, site in model_trace.nodes.items():
                if site["type"] != "sample" or site["infer"].get("_deterministic") or site_is_subsample(site):
                    continue
                term = term_of(name)
                value = _site_loss(site, guide_trace.nodes.get(name))
                totals[term] = totals[term] + value if term in totals else value
            # Sites of the guide alone, such as the joint draw of an autoguide, carry its density.
            for name, site in guide_trace.nodes.items():
                if site["type"] == "sample" and name not in model_trace.nodes and not site_is_subsample(site):
                    _require_reparameterized(site)
                    value = _log_density(site)
                    totals["kl_auxiliary"] = totals["kl_auxiliary"] + value if "kl_auxiliary" in totals else value
        if self.nll_weight != 1 and "nll" in totals:
            totals["nll"] = self.nll_weight * totals["nll"]
        if self.num_particles > 1:
            totals = {term: value / self.num_particles for term, value in totals.items()}
        self.terms = {term: value.detach() for term, value in totals.items()}
        return torch.stack(list(totals.values())).sum()

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, its gradients added to the parameters: what `pyro.infer.SVI` calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        pyro.util.warn_if_nan(loss, "loss")
        return loss.item()


def _design(guide: Any, draws: Draws | None) -> Draws:
    found = design_of(guide, draws, 2)
    if found == "antithetic" and isinstance(guide, AutoAdapterGuide):
        if draws is not None:
            raise ConfigurationError(
                "draws='antithetic': a loss cannot mirror the draws of an autoguide, whose columns come without their "
                "mean. Use draws='independent', or MonteCLoRAGuide or MeanFieldGuide."
            )
        return "independent"
    return found


def _mirrored(guide: LoRAGuide, trace: Trace) -> Trace:
    """The guide's trace with its columns on the other side of their mean, given all else that was drawn."""
    found = trace.copy()
    for group in guide.model.sites.groups:
        name = guide.model.sites.column_site(group)
        site = found.nodes[name]
        found.nodes[name] = {**site, "value": 2 * site["fn"].mean - site["value"]}
    return found


class _Recorder(TraceMessenger):  # type: ignore[misc]
    """Records a trace, and says that it has no use for what carries no density (see `bayes_lora.effect_handlers`)."""

    densities_only = True


def _site_loss(model_site: dict[str, Any], guide_site: dict[str, Any] | None) -> Tensor:
    if guide_site is None and not model_site["is_observed"]:
        raise DataError(
            f"site {model_site['name']!r} is neither observed nor in the guide: the batch has no labels to learn from. "
            "Pass batches with 'labels'."
        )
    if guide_site is None:
        return -_log_density(model_site)
    _require_reparameterized(guide_site)
    try:
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return _log_density(guide_site) - _log_density(model_site)
    return scale_and_mask(kl, scale=guide_site["scale"], mask=guide_site["mask"]).sum()  # type: ignore[no-any-return]


def _require_reparameterized(site: dict[str, Any]) -> None:
    if not site["fn"].has_rsample:
        raise UnsupportedELBOError(
            f"the guide's site {site['name']!r} draws from {type(site['fn']).__name__}, whose draws do not follow its "
            "parameters, so their gradient would be 0. Draw from a distribution with rsample, or use Trace_ELBO()."
        )


def _log_density(site: dict[str, Any]) -> Tensor:
    log_prob = site["fn"].log_prob(site["value"])
    return scale_and_mask(log_prob, scale=site["scale"], mask=site["mask"]).sum()  # type: ignore[no-any-return]
