"""Calibrating the scale of the noise on held-out rows: the Bayesian counterpart of temperature scaling."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayes_lora.checks import require_count, require_positive
from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.guides.draw_design import block_size, design_of
from bayes_lora.inference.predictors.predictive import predict
from bayes_lora.metrics.bootstrap import standard_error
from bayes_lora.metrics.monte_carlo_error import independent_parts
from bayes_lora.models import BayesianLoRA, Likelihood

_GRID_RATIO = math.sqrt(10)  # of neighbouring scales on the first, coarse grid, at most
_TOLERANCE = 1.1  # ratio of the bracket's ends at which the search stops
_ERRORS = 2  # standard errors by which a scale has to beat the point estimate
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class ScaleCalibration:
    """What `calibrate_scale` found.

    Attributes:
        scale: what the sample scale was set to: its mean over adapters.
        nll: of the posterior predictive at that scale, nats per row.
        mean_nll: of the point estimate, ``A = mu``.
        improves: whether a scale was found that beats the point estimate by more than the error of its draws and of the
            choice of rows together.
        tried: every (scale, nll) in the order of scales; the first is (0, mean_nll).
        bounds: where scales were looked for.
    """

    scale: float
    nll: float
    mean_nll: float
    improves: bool
    tried: tuple[tuple[float, float], ...]
    bounds: tuple[float, float]

    @property
    def at_upper_bound(self) -> bool:
        """Whether the best scale is the largest that was allowed: look further up."""
        return self.scale == self.bounds[1]


@dataclass(frozen=True)
class _Score:
    """NLL of a predictive, nats, of each row, and its standard error for the choice of draws (0 for the point
    estimate)."""

    of_rows: Tensor
    error: float

    @property
    def nll(self) -> float:
        """Per row; infinite where noise this large made the logits NaN."""
        return self.of_rows.mean().item() if self.of_rows.isfinite().all() else math.inf

    def error_beside(self, other: "_Score") -> float:
        """Standard error of the difference of two NLLs, over draws and over rows, which are the same for both."""
        return math.hypot(self.error, other.error, standard_error(other.of_rows - self.of_rows).item())


def calibrate_scale(
    model: BayesianLoRA,
    guide: Callable[..., Any],
    loader: Iterable[Mapping[str, Any]],
    *,
    num_samples: int = 16,
    draws: Draws | None = None,
    seed: int = 0,
    bounds: tuple[float, float] = (1e-3, 1.0),
    on_step: Callable[[float, float], None] | None = None,
) -> ScaleCalibration:
    """Set the model's `sample_scale` to the one with the least NLL of the posterior predictive on held-out rows.

        eps* = argmin_eps  -1/n sum_i ln 1/S sum_s p(y_i | x_i, mu + eps * noise_s)

    The rows are a part of the training split that nothing was trained on, never test rows. All scales see the same
    draws of the noise, so that the curve is smooth in eps; it is searched on a logarithmic axis, first on a grid of
    half decades, then by golden section around the grid's best, until the ends of the bracket are within 10 % of each
    other. Whatever the curve looks like, the best of all that were tried counts.

    With finitely many independent draws the curve has a slope at 0 whose sign is chance, so that a tiny scale would
    seem to beat the point estimate half of the time (in antithetic pairs they have none); and with finitely many rows,
    other ones might say otherwise. The best scale
    therefore has to beat it by two standard errors,

        error^2 = var_s(u_s) / S + var_i(d_i) / n,   u_s = 1/n sum_i p_s(y_i) / mean_t p_t(y_i)

    (the infinitesimal jackknife over draws, or over their pairs) with d_i what the two NLLs of row i differ by. Where
    it does not, `ScaleCalibration.improves` is False and the scale is the least that the objective has: 0 for "paper",
    which is the point estimate; for "elbo", whose KL is infinite at 0, the lower of `bounds`, and
    ``predict(..., at_mean=True)`` is what to use.

    Where adapters have scales of their own, all are multiplied by one factor, and "the scale" means their mean. The
    guide may be one that was never trained, ``MonteCLoRAGuide(model)`` on a plain LoRA checkpoint: noise of
    covariance V = c I around it.

    The cost is ``1 + S * tried`` passes of the network over the rows, with S = num_samples: for the default bounds 7
    scales on the grid and at most 8 more, 241 passes at S = 16. Use the number of draws that you will predict with:
    fewer draws make the noise look worse than it is.

    Args:
        model: the model, whose `sample_scale` is changed; after an error it is what it was.
        guide: its guide: any whose noise has the model's sample_scale, as `MonteCLoRAGuide` and `MeanFieldGuide` do.
        loader: labelled, held-out batches; they are kept in memory, since they are needed again for each scale.
        num_samples: S, draws of the posterior predictive: two blocks of the design or more.
        draws: see `predict`.
        seed: of the draws.
        bounds: least and largest scale to look at, both positive.
        on_step: called with (scale, nll) after each scale, the point estimate's first; for progress bars.

    Raises:
        ConfigurationError: bounds that are none, a guide whose noise does not follow the scale, or noise that does
            not reach the logits; and what `predict` raises.
        DataError: no rows, or rows without labels.

    Source: arXiv 2411.04358 leaves eps a constant; the criterion is that of temperature scaling, Guo et al. (2017),
    section 4.2.

    Example:
        >>> calibrate_scale(model, MonteCLoRAGuide(model), held_out, num_samples=16).scale  # doctest: +SKIP
    """
    require_count("num_samples", num_samples)
    design = design_of(guide, draws, num_samples, fewest_blocks=2)
    if num_samples < 2 * block_size(design):
        raise ConfigurationError(
            f"num_samples={num_samples} says nothing about the error of its NLL, which takes two independent draws, or "
            f"two blocks of dependent ones, see draws. Use {2 * block_size(design)} or more, such as 16."
        )
    lower, upper = _checked(bounds)
    batches = list(loader)
    before = model.sample_scale.clone()
    shares = before / before.mean() if before.any() else torch.ones_like(before)
    tried: dict[float, _Score] = {}

    def try_scale(scale: float) -> float:
        if scale not in tried:
            if scale > 0:
                model.set_sample_scale(scale * shares)
            prediction = predict(
                model, guide, batches, num_samples=num_samples, draws=design, seed=seed, at_mean=scale == 0
            )
            tried[scale] = _score(model.likelihood, prediction, block_size(design))
            if on_step is not None:
                on_step(scale, tried[scale].nll)
        return tried[scale].nll

    try:
        mean_nll = try_scale(0.0)
        _search(try_scale, _grid(lower, upper))
        scale = min((scale for scale in sorted(tried) if scale > 0), key=try_scale)
        improves = mean_nll - tried[scale].nll > _ERRORS * tried[scale].error_beside(tried[0.0])
        if not improves:
            scale = 0.0 if model.config.objective == "paper" else lower
        model.set_sample_scale(scale * shares)
    except BaseException:
        model.set_sample_scale(before)
        raise
    curve = tuple((scale, tried[scale].nll) for scale in sorted(tried))
    return ScaleCalibration(scale, tried[scale].nll, mean_nll, improves, curve, (lower, upper))


def _search(try_scale: Callable[[float], float], grid: list[float]) -> None:
    """Evaluate the grid, then close in on its best by golden section, on the logarithm of the scale."""
    on_grid = [try_scale(scale) for scale in grid]
    if len(set(on_grid)) == 1:
        raise ConfigurationError(
            f"the NLL is {on_grid[0]:.6g} at every sample_scale, so there is nothing to calibrate. Either the guide's "
            "noise does not have the model's sample_scale, as an autoguide's does not: use MonteCLoRAGuide or "
            "MeanFieldGuide. Or the noise does not reach the logits, because LoRA-B is still 0: train the adapter."
        )
    best = on_grid.index(min(on_grid))
    low, high = math.log(grid[max(best - 1, 0)]), math.log(grid[min(best + 1, len(grid) - 1)])
    while high - low > math.log(_TOLERANCE):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if try_scale(_rounded(left)) <= try_scale(_rounded(right)):
            high = right
        else:
            low = left


def _grid(lower: float, upper: float) -> list[float]:
    """From lower to upper in equal ratios of at most `_GRID_RATIO`, both ends exact."""
    steps = max(1, math.ceil(math.log(upper / lower) / math.log(_GRID_RATIO) - 1e-9))
    return [lower, *(_rounded(math.log(lower) + math.log(upper / lower) * i / steps) for i in range(1, steps)), upper]


def _rounded(log_scale: float) -> float:
    """The scale to 6 significant digits: two ways of computing one golden-section point are then one scale."""
    return float(f"{math.exp(log_scale):.5e}")


def _score(likelihood: Likelihood, prediction: Any, block_size: int) -> _Score:
    """Of the mean over draws.

    Raises:
        DataError: no labels; or wrong labels, or NaN, in a prediction of one draw, the point estimate.
    """
    if prediction.labels is None:
        raise DataError(
            "the held-out rows have no labels, and the scale is chosen by their likelihood. Pass batches with 'labels'."
        )
    packed = likelihood.pack(prediction)
    if len(packed) == 1:
        likelihood.metrics(prediction)
        return _Score(-likelihood.row_log_density(prediction), 0.0)
    nll = -likelihood.row_log_density(prediction)
    alone = (likelihood.unpack(of_draw, prediction.labels) for of_draw in packed.split(1))
    at_label = torch.stack([likelihood.row_log_density(each) for each in alone])  # (sample, example)
    influence = (at_label + nll).exp().mean(-1)  # (sample,)
    return _Score(nll, standard_error(independent_parts(influence, block_size)).item())


def _checked(bounds: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ConfigurationError(f"bounds={bounds!r} must be two scales, such as bounds=(1e-3, 1.0).")
    for name, bound in zip(("the lower of bounds", "the upper of bounds"), bounds, strict=True):
        require_positive(name, bound)
    if not bounds[0] < bounds[1]:
        raise ConfigurationError(f"bounds={bounds!r} must rise, such as bounds=(1e-3, 1.0).")
    return float(bounds[0]), float(bounds[1])
