"""How far the guide is from the posterior: the Pareto shape k-hat of its importance ratios."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics.importance import k_hat_threshold, pareto_smoothed
from bayes_lora.inference.guides.posterior_draw import (
    Guide,
    PosteriorDraw,
    posterior_draw,
    require_own_guide,
    site_values,
)
from bayes_lora.inference.predictors.predictor import evaluation_mode
from bayes_lora.models import BayesianLoRA

_FEWEST_DRAWS = 100


@dataclass(frozen=True)
class ParetoCheck:
    """Shape of the tail of p(y, z) / q(z) at draws z of the guide, over all latent sites.

    Attributes:
        k_hat: the shape; -inf where the ratios are all the same.
        threshold: up to which importance sampling with this many draws would work, min(1 - 1 / log10(S), .7).
        effective_draws: (sum w)^2 / sum w^2 of the smoothed ratios, 1 to S.
        num_draws: S.
        dimension: numbers that a draw has, over all sites.
        elbo: mean of the log ratios, nats: the evidence lower bound of the whole training set.
        log_evidence: logarithm of the mean ratio, nats: an estimate of ln p(y), worth something where k_hat is small.
    """

    k_hat: float
    threshold: float
    effective_draws: float
    num_draws: int
    dimension: int
    elbo: float
    log_evidence: float

    @property
    def flagged(self) -> bool:
        """Whether k-hat exceeds the threshold, or is no number."""
        return not self.k_hat <= self.threshold

    @property
    def message(self) -> str:
        """In words."""
        verdict = "is not close to" if self.flagged else "is close to"
        return (
            f"The guide {verdict} the posterior: k-hat is {self.k_hat:.2f}, and up to {self.threshold:.2f} its draws "
            f"could be reweighted to the posterior ({self.dimension} dimensions, {self.effective_draws:.0f} of "
            f"{self.num_draws} draws effective)."
        )


def psis_k_hat(
    model: BayesianLoRA,
    guide: Guide,
    batch: Mapping[str, Any],
    *,
    num_draws: int = 1000,
    seed: int = 0,
    max_dimension: int = 500,
) -> ParetoCheck:
    """k-hat of the importance ratios between joint and guide, over all latent sites z = (pi, Sigma, A).

        ln w_s = ln p(z_s) + sum_{i=1..n} ln p(y_i | x_i, z_s) - ln q(z_s),    z_s ~ q

    without the weights that the sites have in the loss, which is one per training example: the joint is that of the
    whole training set at temperature 1. k-hat is the shape of the generalized Pareto distribution fitted to the largest
    ratios; moments of w of order above 1 / k do not exist.

    It can tell that the guide misses mass of the posterior, or that its mean is elsewhere: both make ratios with a
    heavy tail. In several dimensions it also tells of a guide that is too wide, since few draws then carry all the
    weight. It cannot tell which of these it is, nor see mass of the posterior where the guide has no draws. A large
    k-hat need not harm predictions. And it is of the joint of *all* sites: pi and Sigma are auxiliary, their posterior
    given A is no product, so a `MonteCLoRAGuide` whose LoRA-A is right may still have a large k-hat for how it spreads
    pi and Sigma; an `AdapterGuide` leaves those at the prior, where they cancel, and its k-hat is that of A alone.

    Args:
        model: a model of objective "elbo" at temperature 1, in which nothing but its latent sites is uncertain.
        guide: its guide, or any Pyro callable that samples the model's latent sites.
        batch: all training rows in one batch, with labels.
        num_draws: S, at least 100; 1000 or more for a steady k-hat.
        seed: of the draws.
        max_dimension: the most numbers that a draw may have.

    Raises:
        ConfigurationError: objective "paper", a kl_temperature other than 1, too many dimensions, a guide that is a
            point, a guide of another model, or an option out of range.
        DataError: a batch without labels, or not all `num_train_examples` rows.

    Source: Yao, Vehtari, Simpson & Gelman, "Yes, but did it work? Evaluating variational inference", ICML 2018,
    Algorithm 1; threshold from Vehtari et al., "Pareto smoothed importance sampling", JMLR 25 (2024), section 3.2.4.

    Example:
        >>> check = psis_k_hat(model, guide, all_training_rows)  # doctest: +SKIP
        >>> check.flagged, check.message  # doctest: +SKIP
    """
    require_own_guide(model, guide)
    require_seed("seed", seed)
    require_count("num_draws", num_draws)
    if num_draws < _FEWEST_DRAWS:
        raise ConfigurationError(f"num_draws={num_draws} leaves no tail to fit. Give {_FEWEST_DRAWS} or more.")
    _require_joint(model)
    _require_whole(model, batch)
    dimension = num_dimensions(model)
    if dimension > max_dimension:
        raise ConfigurationError(
            f"a draw of the posterior has {dimension} dimensions, above max_dimension={max_dimension}: there the "
            "variance of the log ratios grows with the dimension, a single draw carries all the weight, and k-hat is "
            "large for any guide, however good. Look at held-out calibration (loo_pit, check_confidence) instead, or "
            "check the guide on a small network."
        )
    device = model.sites.example.device
    rows = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    with evaluation_mode(model):
        draws = [posterior_draw(model, guide, seed, index) for index in range(num_draws)]
        joint = np.array([_log_joint(model, draw, rows) for draw in draws])
    _require_spread(model, draws)
    log_ratios = joint - np.array([_log_guide(draw) for draw in draws])
    resolution = 1e-2 * math.sqrt(torch.finfo(model.sites.example.dtype).eps) * float(np.abs(joint).max())
    weights, k_hat = pareto_smoothed(log_ratios, resolution)
    return ParetoCheck(
        k_hat=float(k_hat),
        threshold=k_hat_threshold(num_draws),
        effective_draws=float(1 / np.exp(2 * weights).sum()),
        num_draws=num_draws,
        dimension=dimension,
        elbo=float(log_ratios.mean()),
        log_evidence=float(np.logaddexp.reduce(log_ratios)) - math.log(num_draws),
    )


def num_dimensions(model: BayesianLoRA) -> int:
    """Numbers that a draw of the posterior has: pi, Sigma and columns of all adapters."""
    sites = model.sites
    weights = len(sites.adapters) * (model.config.num_components - 1)
    covariances = sum(adapter.rank * (adapter.rank + 1) // 2 for adapter in sites.adapters)
    columns = sum(adapter.rank * adapter.in_features for adapter in sites.adapters)
    return weights + covariances + columns


@torch.no_grad()
def _log_joint(model: BayesianLoRA, draw: PosteriorDraw, batch: Mapping[str, Any]) -> float:
    """ln p(y, z), nats, summed over the rows; the weights of the loss are left out."""
    values = site_values(draw.prior)
    with poutine.block(), poutine.trace() as recorder:
        poutine.condition(model, data=values)(**batch)
    return _log_density(recorder.trace)


def _log_guide(draw: PosteriorDraw) -> float:
    """ln q(z), nats. What the guide left out was drawn from the prior, and has its density."""
    left_out = draw.prior.copy()
    for name in draw.prior.observation_nodes:
        left_out.remove_node(name)
    return _log_density(draw.posterior) + _log_density(left_out)


@torch.no_grad()
def _log_density(trace: Trace) -> float:
    """Sum of ln p over all sites, each without its scale."""
    trace.compute_log_prob()
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    return sum(float(site["unscaled_log_prob"].double().sum()) for site in sites)


def _require_joint(model: BayesianLoRA) -> None:
    config = model.config
    if config.objective != "elbo":
        raise ConfigurationError(
            f"objective={config.objective!r} has no joint density to compare the guide with: its prior is of the noise "
            "alone, weighted by kl_weight, with a cooperative term that is no density. Use objective='elbo'."
        )
    if config.kl_temperature != 1:
        raise ConfigurationError(
            f"kl_temperature={config.kl_temperature!r} weighs the prior differently than Bayes' rule, so the guide is "
            "not meant to be the posterior of the joint. k-hat is for models fitted at kl_temperature=1."
        )


def _require_whole(model: BayesianLoRA, batch: Mapping[str, Any]) -> None:
    if batch.get("labels") is None:
        raise DataError("the batch has no labels, and the joint density needs them. Pass batches with 'labels'.")
    num_rows, expected = len(batch["labels"]), model.config.num_train_examples
    if num_rows != expected:
        raise DataError(
            f"the batch has {num_rows} rows, and the posterior is of num_train_examples={expected}: the joint density "
            "is of the whole training set. Pass all of its rows in one batch."
        )


def _require_spread(model: BayesianLoRA, draws: list[PosteriorDraw]) -> None:
    first, *others = draws
    for site in map(model.sites.column_site, model.sites.groups):
        if all(torch.equal(first.value(site), other.value(site)) for other in others):
            raise ConfigurationError(
                f"every draw of {site!r} is the same: the guide is a point estimate, which has no density to compare. "
                "k-hat is for guides that are distributions."
            )
