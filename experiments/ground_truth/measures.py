"""How far draws of A are from the truth: mean, variance, coverage and predictive."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_lora.experiments.ground_truth.problems import Problem

LEVELS = (0.5, 0.9)


@dataclass(frozen=True)
class Measures:
    """What is compared; each is 0 for the truth, coverages excepted.

    Attributes:
        mean_error: ``|E_q A - E_p A|_F / |E_p A|_F``.
        mean_error_sd: root mean square over entries of ``(E_q A - E_p A) / sd_p A``, posterior standard deviations.
        log_variance_ratio: mean over entries of ``ln(Var_q A_ji / Var_p A_ji)``; None for a single point.
        coverage_50, coverage_90: probability under the truth of the method's central intervals of f(x), the mean over
            held-out rows and outputs; the truth's own are 0.5 and 0.9.
        predictive_kl: ``KL(p(y | x) || q(y | x))`` in nats, the mean over held-out rows.
    """

    mean_error: float
    mean_error_sd: float
    log_variance_ratio: float | None
    coverage_50: float
    coverage_90: float
    predictive_kl: float


def compare(problem: Problem, draws: Tensor, truth: Tensor) -> Measures:
    """A method's draws of A against draws from the posterior.

    Args:
        problem: whose posterior it is.
        draws: (draw, rank, in_features), of the method; one draw is a point estimate.
        truth: (draw, rank, in_features), from NUTS or the closed form.
    """
    shift = draws.mean(0) - truth.mean(0)
    of_draws, of_truth = (held_out_functions(problem, a) for a in (draws, truth))
    half, most = (interval_coverage(of_draws, of_truth, level) for level in LEVELS)
    ratio = None if len(draws) == 1 else float((draws.var(0) / truth.var(0)).log().mean())
    return Measures(
        mean_error=float(shift.norm() / truth.mean(0).norm()),
        mean_error_sd=float((shift / truth.std(0)).square().mean().sqrt()),
        log_variance_ratio=ratio,
        coverage_50=half,
        coverage_90=most,
        predictive_kl=predictive_kl(problem, draws, truth),
    )


def held_out_functions(problem: Problem, a: Tensor) -> Tensor:
    """f(x) of the rows held out, (draw, test example, output).

    Of a classification, logits less their mean over the classes: softmax does not see that mean.
    """
    logits = problem.logits(a, problem.test_inputs)
    return logits if problem.is_regression else logits - logits.mean(-1, keepdim=True)


def interval_coverage(draws: Tensor, truth: Tensor, level: float) -> float:
    """Part of `truth` inside the central intervals of `draws`, both (draw, ...), the mean over all that follows.

    Intervals run from the quantile (1 - level) / 2 of `draws` to that of (1 + level) / 2.
    """
    tails = draws.new_tensor([(1 - level) / 2, (1 + level) / 2])
    lower, upper = torch.quantile(draws, tails, dim=0)
    return float(((lower <= truth) & (truth <= upper)).double().mean())


def predictive_kl(problem: Problem, draws: Tensor, truth: Tensor) -> float:
    """KL(p(y | x) || q(y | x)) of the posterior predictives, nats, the mean over held-out rows.

    Classification: of the mean class probabilities, exact but for the finite numbers of draws. Regression: of
    normals with the predictives' means and covariances ``Cov f(x) + noise_scale^2 I``, exact where both are normal, as
    the truth is.
    """
    logits_q, logits_p = (problem.logits(a, problem.test_inputs) for a in (draws, truth))
    if problem.noise_scale is None:
        log_q, log_p = (logits.log_softmax(-1).logsumexp(0) - _log_count(logits) for logits in (logits_q, logits_p))
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    q, p = (_normal_predictive(logits, problem.noise_scale) for logits in (logits_q, logits_p))
    return float(torch.distributions.kl_divergence(p, q).mean())


def _normal_predictive(logits: Tensor, noise_scale: float) -> torch.distributions.MultivariateNormal:
    mean = logits.mean(0)
    centred = (logits - mean).movedim(0, -1)  # (test example, output, draw)
    identity = torch.eye(logits.shape[-1], dtype=logits.dtype)
    covariance = centred @ centred.mT / max(len(logits) - 1, 1) + noise_scale**2 * identity
    return torch.distributions.MultivariateNormal(mean, covariance)


def _log_count(logits: Tensor) -> Tensor:
    return logits.new_tensor(float(len(logits))).log()


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds and its standard error; None of a single seed."""
    found = torch.tensor(values, dtype=torch.float64)
    error = None if len(found) < 2 else float(found.std() / len(found) ** 0.5)
    return float(found.mean()), error
