"""The loss as a sum of named terms: `TraceMeanField_ELBO` itemized, and without unused densities."""

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

from bayes_lora.errors import DataError, UnsupportedELBOError
from bayes_lora.models.bayesian_lora import term_of


class ItemizedELBO(ELBO):  # type: ignore[misc]
    """Negative evidence lower bound with analytic KLs, itemized.

        loss = - sum_{observed} scale log p  +  sum_{latent} scale KL(q || p)

    Equal to `pyro.infer.TraceMeanField_ELBO`, whose trace also evaluates the log density of every latent site, a
    cost that grows with the size of the noise, only to leave it unused. A latent site without a registered KL takes
    ``log q - log p`` at the draw instead.

    Raises:
        UnsupportedELBOError: a draw of the guide does not follow its parameters (`has_rsample` is false), so that no
            gradient would reach them: the first term would have none, and nobody would notice. Pyro's raises as well.
            Train such a guide with `pyro.infer.Trace_ELBO`, which has the estimator for it.
        DataError: a site is neither observed nor in the guide.

    Attributes:
        terms: of the last loss, by name (`bayes_lora.models.bayesian_lora.LOSS_TERMS`), detached scalars that
            sum to the loss, averaged over particles.

    Example:
        >>> elbo = ItemizedELBO()
        >>> loss = elbo(model, guide)(**batch)  # doctest: +SKIP
        >>> elbo.terms["nll"]  # doctest: +SKIP
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)
        self.terms: dict[str, Tensor] = {}

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with _Recorder() as guide_recorder:
            guide(*args, **kwargs)
        with _Recorder() as model_recorder, ReplayMessenger(trace=guide_recorder.trace):
            model(*args, **kwargs)
        return model_recorder.trace, guide_recorder.trace

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
