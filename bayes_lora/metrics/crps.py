"""The continuous ranked probability score of mixtures of Gaussians, or of Student's t."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.interpolate import CubicSpline
from torch import Tensor

Distance = Callable[[Any], Any]

# Student's t: where the mean distance of two is computed, and the farthest away; farther, it is the distance itself.
_PLACES = np.sinh(np.linspace(0, math.asinh(300), 400))
# x = sinh(v) on these v makes the trapezoid rule exact to rounding for the integrals over the noise.
_STEPS, _STEP = np.arange(-25, 25, 0.05), 0.05


def mixture_crps(locations: Tensor, labels: Tensor, scale: Tensor, degrees_of_freedom: float | None = None) -> Tensor:
    """``int (F(x) - [x >= y])^2 dx = E|Y - y| - 1/2 E|Y - Y'|``, Y and Y' from ``1/S sum_s p(.; m_s, sigma_s)``.

    Both are means of distances of noise T, T' of scale 1: of ``E|sigma_s T - (y - m_s)|`` over draws, and of
    ``E|sigma_r T - sigma_s T' - (m_s - m_r)|`` over pairs of draws. All are exact to rounding but the last of Student's
    t of one scale, a spline through 400 values, good to seven digits.

    Args:
        locations: m, (sample, example, output).
        labels: y, (example, output).
        scale: sigma, (output,), or (sample, output) where draws differ in it.
        degrees_of_freedom: nu of Student's t, above 1; None is a Gaussian.

    Returns:
        (example, output), in units of the labels; lower is better.

    Source: Gneiting and Raftery 2007, Strictly Proper Scoring Rules, equation 21; Grimit et al. 2006, equation 5.
    """
    sigma, m, y = (values.double().numpy() for values in (scale, locations, labels))
    if sigma.ndim == 2 and (sigma == sigma[0]).all():
        sigma = sigma[0]
    if sigma.ndim == 1:
        to_label, between = _distances(degrees_of_freedom)
        first = np.mean([to_label((y - of) / sigma) for of in m], axis=0)
        second = np.mean([between((m - of) / sigma).mean(0) for of in m], axis=0)
        return torch.from_numpy(sigma * (first - second / 2))
    to_label, _ = _distances(degrees_of_freedom)
    draws = list(zip(m, sigma, strict=True))
    first = np.mean([of * to_label((y - location) / of) for location, of in draws], axis=0)
    pairs = [_between_two(one - two, r, s, degrees_of_freedom) for one, r in draws for two, s in draws]
    return torch.from_numpy(first - np.mean(pairs, axis=0) / 2)


def _distances(nu: float | None) -> tuple[Distance, Distance]:
    """E|T - a| and E|T - T' - a|, as functions of a."""
    if nu is None:
        return _from_gaussian, lambda a: math.sqrt(2) * _from_gaussian(a / math.sqrt(2))
    return lambda a: _from_t(a, nu), _between_t(nu)


def _between_two(a: Any, r: Any, s: Any, nu: float | None) -> Any:
    """E|r T - s T' + a|, for scales (output,)."""
    if nu is None:
        both = np.sqrt(r**2 + s**2)
        return both * _from_gaussian(a / both)
    x = np.sinh(_STEPS)
    weights = stats.t.pdf(x, nu) * np.cosh(_STEPS) * _STEP
    return np.tensordot(weights, s * _from_t((a + r * x[:, None, None]) / s, nu), 1)


def _from_gaussian(a: Any) -> Any:
    """a (2 F(a) - 1) + 2 f(a)."""
    return a * (2 * stats.norm.cdf(a) - 1) + 2 * stats.norm.pdf(a)


def _from_t(a: Any, nu: float) -> Any:
    """The same, with f (nu + a^2) / (nu - 1) for f."""
    return a * (2 * stats.t.cdf(a, nu) - 1) + 2 * (nu + a**2) / (nu - 1) * stats.t.pdf(a, nu)


@lru_cache(maxsize=8)
def _between_t(nu: float) -> Distance:
    x = np.sinh(_STEPS)
    weights = stats.t.pdf(x, nu) * np.cosh(_STEPS) * _STEP
    excess = CubicSpline(_PLACES, [float(weights @ _from_t(x - a, nu)) - a for a in _PLACES])
    farthest = float(_PLACES[-1])

    def distance(a: Any) -> Any:
        away = np.abs(a)
        return away + np.where(away < farthest, excess(np.minimum(away, farthest)), 0.0)

    return distance
