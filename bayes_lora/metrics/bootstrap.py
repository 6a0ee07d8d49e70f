"""Is one method better than another on the same rows? The paired bootstrap over examples, and means over seeds.

The rows are drawn again with replacement, both methods are looked at on the same draw, and the difference of their
metric is noted (Efron and Tibshirani 1993, sections 8.3 and 13.3). Pairing matters: rows that are hard for one method
are hard for the other, and that part of the noise cancels.

With several training seeds the rows are drawn once for all seeds and the metric is averaged over the seeds, which stay
as they are. So intervals and p-values are about *other rows, given these trained networks*. How much another training
run would change a metric is what `mean_and_standard_error` over seeds says.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import ConfigurationError, DataError

Statistic = Callable[[Tensor], Tensor]
"""A metric of one method and seed on many sets of rows: from row indices (resample, example), with repetitions, to its
values (resample,). `one_by_one` makes one of a metric that knows a single set of rows only."""

# Row indices held at once, 32 MiB of them.
_INDICES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Difference:
    """What the bootstrap says about (metric of the first method) - (metric of the second), in the metric's unit.

    Attributes:
        estimate: on the rows as they are.
        low: lower end of the percentile interval.
        high: upper end.
        p_value: two-sided, 2 min(P(d* <= 0), P(d* >= 0)) over resamples d*, at most 1, each share counted with one
            resample more, (1 + count) / (1 + resamples), so that it is never 0. Where it is below 1 - confidence, the
            interval does not hold 0, up to one resample. Methods that agree on every row have p = 1.
        num_resamples: resamples on which the metric of both methods had a value; the others are left out.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    num_resamples: int


def mean_difference(
    first: Tensor,
    second: Tensor,
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """For metrics that are means over rows: accuracy, NLL, Brier score, see `metrics.example_losses`.

    Args:
        first: losses of the first method, (example,), or (seed, example) for several training seeds.
        second: of the second on the same rows in the same order; the number of seeds may be another.
        num_resamples: B.
        seed: of the resamples; the same for every pair of methods, whatever their losses.
        confidence: of the interval.

    Raises:
        ConfigurationError: an option out of range.
        DataError: losses of other shapes, of different rows, of no rows, or that are no numbers.

    Example:
        >>> ours, theirs = torch.tensor([0.1, 0.4, 0.2]), torch.tensor([0.2, 0.6, 0.3])
        >>> mean_difference(ours, theirs).high < 0
        True
    """
    for losses in (first, second):
        if losses.dim() not in (1, 2) or losses.shape[-1] != first.shape[-1] or not losses.numel():
            raise DataError(
                "a paired bootstrap needs losses (example,) or (seed, example) of the same rows; got "
                f"{tuple(first.shape)} and {tuple(second.shape)}. Predict the same rows with both methods."
            )
        if not torch.isfinite(losses).all():
            raise DataError("some losses are NaN or infinite. Look at the fit they come from before comparing it.")
    # The mean over seeds and the mean over rows may be taken in either order.
    both = torch.stack([_over_seeds(first), _over_seeds(second)])
    paired = both[0] - both[1]
    draws = _resamples([torch.arange(len(paired))], num_resamples, seed)
    resampled = torch.cat([paired[rows].mean(-1) for rows in draws])
    return _summary(paired.mean(), resampled, both.abs().max(), confidence)


def metric_difference(
    first: Sequence[Statistic],
    second: Sequence[Statistic],
    num_examples: int,
    *,
    strata: Tensor | None = None,
    num_resamples: int = 2_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """For any metric of a set of rows, such as a calibration error or an AUROC.

    A calibration error is biased upwards, on a resample more than on the rows themselves. In the difference of two
    methods of like accuracy most of that cancels, not all: an interval that barely excludes 0 is no evidence.

    It is `resampled` and `resampled_difference`, which do the metric's work once where many pairs are compared.

    Args:
        first: the metric of the first method, one callable for each training seed.
        second: of the second method; the number of seeds may be another.
        num_examples: rows, which the callables index from 0.
        strata: see `resampled`.
        num_resamples: B.
        seed: of the resamples; without strata they are those of `mean_difference`.
        confidence: of the interval.

    Raises:
        ConfigurationError: an option out of range, no callables, or one that gives something else.
        DataError: strata of another number of rows.

    Example:
        >>> def ece(of: Prediction) -> Statistic:  # doctest: +SKIP
        ...     return one_by_one(lambda rows: expected_calibration_error(of.mean_probs[rows], of.labels[rows]))
        >>> metric_difference([ece(p) for p in ours], [ece(p) for p in theirs], len(labels))  # doctest: +SKIP
    """
    ours, theirs = (
        [resampled(of, num_examples, strata=strata, num_resamples=num_resamples, seed=seed) for of in method]
        for method in (first, second)
    )
    return resampled_difference(ours, theirs, confidence=confidence)


def one_by_one(metric: Callable[[Tensor], float]) -> Statistic:
    """The statistic of a metric that looks at one set of rows, from indices (example,) to a number, at a time."""
    return lambda rows: torch.tensor([metric(each) for each in rows], dtype=torch.double)


def resampled(
    metric: Statistic, num_examples: int, *, strata: Tensor | None = None, num_resamples: int = 2_000, seed: int = 0
) -> Tensor:
    """A metric on the rows as they are and on each resample of them, (1 + resample,), double precision.

    Args:
        metric: of one method and training seed; NaN where it has no value.
        num_examples: rows, which it indexes from 0.
        strata: (example,), integers; the number of rows of each value stays as it is in every resample. For
            out-of-distribution detection: 0 for the rows inside and 1 for those outside.
        num_resamples: B.
        seed: of the resamples, which are the same for every metric of as many rows.

    Raises:
        ConfigurationError: an option out of range, or a metric that gives something else than one number a resample.
        DataError: strata of another number of rows.
    """
    require_count("num_examples", num_examples)
    if strata is None:
        strata = torch.zeros(num_examples, dtype=torch.long)
    if strata.shape != (num_examples,):
        raise DataError(
            f"strata of shape {tuple(strata.shape)} for {num_examples} rows. Pass one integer for each row."
        )
    groups = [(strata == value).nonzero().squeeze(-1) for value in strata.unique()]
    found = []
    for rows in (torch.arange(num_examples).unsqueeze(0), *_resamples(groups, num_resamples, seed)):
        values = metric(rows)
        if not isinstance(values, Tensor) or values.shape != rows.shape[:1]:
            raise ConfigurationError(
                f"a statistic gave {type(values).__name__} {tuple(getattr(values, 'shape', ()))} for row indices "
                f"{tuple(rows.shape)}, where one number for each resample, {tuple(rows.shape[:1])}, is needed. If it "
                "looks at one set of rows at a time, pass one_by_one(statistic)."
            )
        found.append(values.double())
    return torch.cat(found)


def resampled_difference(first: Sequence[Tensor], second: Sequence[Tensor], *, confidence: float = 0.95) -> Difference:
    """The difference of two methods from what `resampled` gave for each of their training seeds.

    Raises:
        ConfigurationError: no seeds, or a confidence out of range.
    """
    if not first or not second:
        raise ConfigurationError("a method has no training seeds to compare. Pass a list with one of each.")
    both = torch.stack([torch.stack(list(method)).mean(0) for method in (first, second)])
    paired = both[0] - both[1]
    return _summary(paired[0], paired[1:], both.nan_to_num().abs().max(), confidence)


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over training seeds, and its standard error, the sample deviation (n - 1) / sqrt(n).

    The standard error of a single seed is NaN: one run says nothing about the next.

    Raises:
        DataError: no values.

    Example:
        >>> mean_and_standard_error([1.0, 2.0, 3.0])
        (2.0, 0.5773502691896257)
    """
    if not values:
        raise DataError("there is nothing to average: no seeds. Pass the metric of at least one.")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, standard_error(torch.tensor(values, dtype=torch.double)).item()


def standard_error(values: Tensor) -> Tensor:
    """Of the mean of independent values (value, ...): the sample deviation (n - 1) / sqrt(n), (...)."""
    return values.std(0) / math.sqrt(len(values))


def _over_seeds(losses: Tensor) -> Tensor:
    return losses.double().reshape(-1, losses.shape[-1]).mean(0)


def _resamples(groups: Sequence[Tensor], num_resamples: int, seed: int) -> Iterator[Tensor]:
    """Row indices (resample, example) drawn with replacement within each group, a part of the resamples at a time."""
    require_count("num_resamples", num_resamples)
    require_seed("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    most = max(1, _INDICES_AT_ONCE // sum(map(len, groups)))
    for start in range(0, num_resamples, most):
        size = min(most, num_resamples - start)
        yield torch.cat(
            [rows[torch.randint(len(rows), (size, len(rows)), generator=generator)] for rows in groups], dim=1
        )


def _summary(estimate: Tensor, resampled: Tensor, size: Tensor, confidence: float) -> Difference:
    """Args: the difference as it is, those of the resamples (resample,), and how large the metric itself can be."""
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence={confidence!r} must lie between 0 and 1, both excluded. 0.95 is usual.")
    values = resampled[~resampled.isnan()]
    if estimate.isnan() or not len(values):
        return Difference(estimate.item(), math.nan, math.nan, math.nan, len(values))
    # Metrics that are equal come out as 1e-17 apart, of either sign, and all of one sign would look significant.
    values = values.where(values.abs() > 1e-13 * size, 0.0)
    low, high = values.quantile(torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.double)).tolist()
    tails = [(1 + int(tail.sum())) / (1 + len(values)) for tail in (values <= 0, values >= 0)]
    return Difference(estimate.item(), low, high, min(1.0, 2 * min(tails)), len(values))
