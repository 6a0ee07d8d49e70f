"""The method's lemmas by experiment: how far noise on A moves the output, and what it does to the loss's curvature.

Noise is MonteCLoRA's own, of objective "paper" with a fresh guide: ``A = mode + eps sum_k pi_k S_k``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from bayes_lora.experiments.ground_truth.methods import draw_adapter
from bayes_lora.experiments.ground_truth.mode import hessians, posterior_mode
from bayes_lora.experiments.ground_truth.problems import Problem
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.metrics.bootstrap import standard_error
from bayes_lora.randomness import stream


@dataclass(frozen=True)
class OutputShift:
    """Lemma 4: the output moves in proportion to eps.

    Attributes:
        scales: eps.
        shifts: mean over draws and held-out rows of ``|f(x; A) - f(x; mode)|``, for each eps.
        slope: of ln shift against ln eps, by least squares: 1, if the lemma holds as an equation.
        standard_error: of the slope, from the scatter around the line.
    """

    scales: tuple[float, ...]
    shifts: tuple[float, ...]
    slope: float
    standard_error: float


@dataclass(frozen=True)
class Curvature:
    """Lemmas 2 and 8: the loss averaged over the noise is no less smooth than the loss.

    Attributes:
        scale: eps.
        original: largest eigenvalue of the Hessian of the mean negative log-likelihood at the mode, nats.
        smoothed: largest eigenvalue of the mean of that Hessian over the noise.
        standard_error: of `smoothed`, over the draws.
        largest: largest eigenvalue over all draws, below which the smoothed one stays whatever the loss.
    """

    scale: float
    original: float
    smoothed: float
    standard_error: float
    largest: float


def output_shift(problem: Problem, scales: Sequence[float], num_draws: int, seed: int = 0) -> OutputShift:
    """Measure Lemma 4, with draws of its own for every eps.

    Source: arXiv 2411.04358, Lemma 4.

    Example:
        >>> output_shift(classification_problem(0), (1e-3, 1e-2), num_draws=200).slope  # doctest: +SKIP
    """
    mode = posterior_mode(problem)
    at_mode = problem.logits(mode, problem.test_inputs)
    shifts = []
    for position, scale in enumerate(scales):
        draws = noisy_adapters(problem, mode, scale, num_draws, stream(seed, position))
        shifts.append(float((problem.logits(draws, problem.test_inputs) - at_mode).norm(dim=-1).mean()))
    logs = torch.tensor([tuple(scales), shifts], dtype=torch.float64).log().numpy()
    line = stats.linregress(*logs)
    return OutputShift(tuple(scales), tuple(shifts), float(line.slope), float(line.stderr))


def smoothed_curvature(problem: Problem, scale: float, num_draws: int, seed: int = 0) -> Curvature:
    """Measure Lemmas 2 and 8 at the mode.

    The mean Hessian over the noise is the Hessian of the loss averaged over the noise. Its largest eigenvalue is at
    most the largest anywhere in reach of the noise, which is what smoothness is about; that it is below the one *at
    the mode* does not follow, and is what this measures.

    Source: arXiv 2411.04358, Lemmas 2 and 8.
    """

    def loss(a: Tensor) -> Tensor:
        return -problem.log_likelihood(a) / len(problem.inputs)

    mode = posterior_mode(problem)
    original = torch.linalg.eigvalsh(hessians(loss, mode))[-1]
    at_draws = hessians(loss, noisy_adapters(problem, mode, scale, num_draws, seed))
    values, vectors = torch.linalg.eigh(at_draws.mean(0))
    along = torch.einsum("i,sij,j->s", vectors[:, -1], at_draws, vectors[:, -1])
    return Curvature(
        scale=scale,
        original=float(original),
        smoothed=float(values[-1]),
        standard_error=float(standard_error(along)),
        largest=float(torch.linalg.eigvalsh(at_draws)[:, -1].max()),
    )


def noisy_adapters(problem: Problem, mean: Tensor, scale: float, num_draws: int, seed: int) -> Tensor:
    """``mean + eps sum_k pi_k S_k`` under MonteCLoRA's prior, N = 4, nu = rank: (draw, rank, in_features)."""
    model = problem.build(objective="paper", num_components=4, sample_scale=scale)
    return mean + draw_adapter(model, MonteCLoRAGuide(model), num_draws, seed)
