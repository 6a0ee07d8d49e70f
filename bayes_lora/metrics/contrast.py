"""One method minus another on the same rows: what other rows, and another training, would change about it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student
from torch import Tensor

from bayes_lora.metrics.bootstrap import (
    Difference,
    mean_and_standard_error,
    mean_difference,
    resampled_difference,
)


@dataclass(frozen=True)
class Contrast:
    """A method minus a reference.

    Attributes:
        rows: what the bootstrap over rows says of the mean over seeds, given the trained networks.
        of_seeds: the difference under each training seed.
    """

    rows: Difference
    of_seeds: tuple[float, ...]

    @classmethod
    def of_means(cls, first: Tensor, second: Tensor) -> "Contrast":
        """Of a metric that is a mean over rows, from the losses (seed, example) of both.

        Raises:
            DataError: see `mean_difference`.
        """
        return cls(mean_difference(first, second), tuple((first.double() - second.double()).mean(-1).tolist()))

    @classmethod
    def of_resampled(cls, first: Sequence[Tensor], second: Sequence[Tensor]) -> "Contrast":
        """Of any other metric, from what `resampled` gives for each seed of both, (1 + resample,).

        Raises:
            ConfigurationError: see `resampled_difference`.
        """
        of_seeds = [float(our[0] - their[0]) for our, their in zip(first, second, strict=True)]
        return cls(resampled_difference(first, second), tuple(of_seeds))

    @property
    def standard_error(self) -> float:
        """Over seeds; NaN where there is one."""
        return mean_and_standard_error(self.of_seeds)[1]

    @property
    def sign(self) -> int:
        """1 or -1 where neither other rows nor, as far as seeds can tell, another training would turn it round, else 0.

        That is, where 0 is outside of the 95 % interval over rows, and with two seeds or more outside of that of
        Student's t over seeds, too, which is wide: 4.3 standard errors with three.
        """
        if math.isnan(self.rows.low) or self.rows.low <= 0 <= self.rows.high:
            return 0
        seeds = len(self.of_seeds)
        least = 0.0 if seeds == 1 else float(student.ppf(0.975, seeds - 1)) * self.standard_error
        return 0 if abs(self.rows.estimate) <= least else 1 if self.rows.low > 0 else -1
