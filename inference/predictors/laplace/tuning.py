"""The precision of the prior: where the evidence is greatest, or the NLL of held-out rows least."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.predictors.laplace.laplace import LaplacePosterior
from bayes_lora.inference.predictors.laplace.predictive import LaplacePredictor

PRECISIONS = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 9))
"""1e-4 to 1e4, two per decade."""

_LOG_RANGE = (math.log(1e-12), math.log(1e12))
_HALVINGS = 60  # of the range: to the last digit of a double


def tune_prior_precision(posterior: LaplacePosterior) -> LaplacePosterior:
    """The posterior under the prior that maximizes the log marginal likelihood.

    With u = ln lambda and h_j the eigenvalues of H,

        d/du ln p(D) = (sum_j h_j / (h_j + e^u) - e^u |theta*|^2) / 2,

    effective parameters minus penalty (MacKay 1992), falls strictly with u: there is one maximum, and bisection of the
    sign of the derivative, which comes from autograd, finds it.

    Raises:
        ConfigurationError: the maximum is not between 1e-12 and 1e12: the curvature or all parameters are zero.

    Example:
        >>> posterior = tune_prior_precision(fit_laplace(network, train_loader))  # doctest: +SKIP
    """
    low, high = _LOG_RANGE
    if not _slope(posterior, low) > 0 > _slope(posterior, high):
        raise ConfigurationError(
            f"the evidence has no maximum for a prior precision between {math.exp(low):.0e} and {math.exp(high):.0e}: "
            "the curvature or the parameters are (nearly) zero, as for a network that was not trained. Train it first, "
            "or choose the precision: posterior.with_prior_precision(1.0)."
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(posterior, middle) > 0 else (low, middle)
    return posterior.with_prior_precision(math.exp((low + high) / 2))


def _slope(posterior: LaplacePosterior, log_precision: float) -> float:
    """d/du of the log marginal likelihood at u = ln lambda."""
    u = torch.tensor(log_precision, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(posterior.log_marginal_likelihood(u.exp()), u)
    return float(slope)


def tune_prior_precision_held_out(
    network: nn.Module,
    posterior: LaplacePosterior,
    loader: Iterable[Mapping[str, Any]],
    precisions: Sequence[float] = PRECISIONS,
    *,
    link: str = "monte_carlo",
    num_samples: int = 32,
    draws: Draws | None = None,
    seed: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> LaplacePosterior:
    """The posterior under the prior precision with the least `held_out_nll`; of equals, the largest.

    Arguments and errors are those of `held_out_nll`.
    """
    options: dict[str, Any] = {"link": link, "num_samples": num_samples, "draws": draws, "seed": seed}
    nll = held_out_nll(network, posterior, loader, precisions, on_batch=on_batch, **options)
    best = min(zip(nll.tolist(), precisions, strict=True), key=lambda pair: (pair[0], -pair[1]))
    return posterior.with_prior_precision(best[1])


def held_out_nll(
    network: nn.Module,
    posterior: LaplacePosterior,
    loader: Iterable[Mapping[str, Any]],
    precisions: Sequence[float] = PRECISIONS,
    *,
    link: str = "monte_carlo",
    num_samples: int = 32,
    draws: Draws | None = None,
    seed: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> Tensor:
    """Mean negative log-likelihood, (precision,), nats, of rows under the linearized predictive at each precision.

    The rows pass through the network once: precisions share gradients, and draws the same normal variates.

    Args:
        network: the network that the posterior was fitted on.
        posterior: its posterior.
        loader: batches of rows with labels that were not trained on.
        precisions: values of lambda to try.
        link: as in `LaplacePredictor`.
        num_samples: draws, for links other than "probit".
        draws: as in `LaplacePredictor`.
        seed: of the draws.
        on_batch: called after each batch, for progress bars.

    Raises:
        ConfigurationError: no precisions, or one that is not positive.
        DataError: no rows, or rows without labels.
    """
    if not precisions:
        raise ConfigurationError("precisions is empty. Give at least one prior precision to try, for example [1.0].")
    predictor = LaplacePredictor(network, posterior, link, draws)
    predictions = predictor.at_precisions(loader, precisions, num_samples=num_samples, seed=seed, on_batch=on_batch)
    labels = predictions[0].labels
    if labels is None:
        raise DataError("the held-out rows have no labels, so no likelihood. Add a 'labels' column.")
    index = labels.long().unsqueeze(-1)
    return torch.stack([-prediction.log_mean_probs.gather(-1, index).mean() for prediction in predictions])
