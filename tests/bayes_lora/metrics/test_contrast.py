"""One method minus another: what the rows and the seeds say of its sign."""

import math

import pytest
import torch
from torch import Tensor

from bayes_lora.metrics.bootstrap import Difference, mean_difference, resampled, resampled_difference
from bayes_lora.metrics.contrast import Contrast


def test_it_is_made_of_losses_or_of_resampled_metrics() -> None:
    first, second = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = Contrast.of_means(first, second)
    assert means.rows == mean_difference(first, second)
    assert means.of_seeds == pytest.approx((first - second).mean(-1).tolist())

    def resampled_maximum(losses: Tensor) -> Tensor:
        return resampled(lambda rows: losses[rows].amax(-1), len(losses))

    maxima = [[resampled_maximum(of_seed) for of_seed in method] for method in (first, second)]
    areas = Contrast.of_resampled(*maxima)
    assert areas.rows == resampled_difference(*maxima)
    assert areas.of_seeds == pytest.approx((first.amax(-1) - second.amax(-1)).tolist())


@pytest.mark.parametrize(
    ("of_seeds", "sign"),
    [
        ((0.2,), 1),  # of one seed nothing else is known
        ((0.1, 0.2, 0.3), 0),  # mean .2, standard error .0577, and 4.303 of these are .248
        ((0.16, 0.2, 0.24), 1),  # .0231, .099
        ((0.19, 0.21), 1),  # .01, and 12.706 of these are .127
        ((0.18, 0.22), 0),  # .02, .254
        ((0.2, 0.2), 1),
    ],
)
def test_another_training_may_turn_it_round(of_seeds: tuple[float, ...], sign: int) -> None:
    estimate = sum(of_seeds) / len(of_seeds)
    assert Contrast(Difference(estimate, 0.1, 0.3, 0.01, 100), of_seeds).sign == sign
    below = Contrast(Difference(-estimate, -0.3, -0.1, 0.01, 100), tuple(-value for value in of_seeds))
    assert below.sign == -sign
    assert Contrast(Difference(estimate, -0.1, 0.3, 0.2, 100), of_seeds).sign == 0
    assert Contrast(Difference(estimate, math.nan, math.nan, math.nan, 0), of_seeds).sign == 0
