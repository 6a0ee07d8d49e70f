"""Robustness over a grid, by hand and by slow twins."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from bayes_lora.errors import DataError
from bayes_lora.metrics.robustness import (
    distances_p,
    holm,
    inter_quartile_range,
    interval_over_cells,
    interval_over_rows,
    intrinsic_robustness,
    largest_gain,
    median,
    regret_of_random,
    robustness,
    signed_rank_p,
    spread,
)

# Five points, two seeds.
NLL = np.array([[0.9, 0.7], [0.5, 0.5], [0.4, 0.2], [0.6, 0.8], [2.0, 1.4]])


def test_by_hand() -> None:
    found = robustness(NLL, higher_is_better=False, middle=1)
    # In order: .2 .4 .5 .5 .6 .7 .8 .9 1.4 2; quartiles at places 2.25 and 6.75, .5 and .875.
    assert found.best == 0.2
    assert found.worst == 2.0
    assert found.median == pytest.approx(0.65)
    assert found.spread == pytest.approx(1.8)
    assert found.iqr == pytest.approx(0.375)
    # In the mean over seeds .8 .5 .3 .7 1.7, of which .3 is the best.
    assert found.regret_of_middle == pytest.approx(0.2)
    assert found.regret_of_random == pytest.approx((0.5 + 0.2 + 0.0 + 0.4 + 1.4) / 5)
    assert found.num_cells == 10
    assert intrinsic_robustness(NLL.ravel()) == pytest.approx(1 / 0.65)


def test_more_is_better() -> None:
    lower, higher = (robustness(sign * NLL, higher_is_better=sign < 0, middle=1) for sign in (1, -1))
    assert (higher.best, higher.worst, higher.median) == (-lower.best, -lower.worst, -lower.median)
    for name in ("spread", "iqr", "regret_of_middle", "regret_of_random"):
        assert getattr(higher, name) == pytest.approx(getattr(lower, name))
    # Taken the wrong way round, the worst point is the best.
    assert robustness(NLL, higher_is_better=True, middle=1).regret_of_middle == pytest.approx(1.2)
    assert math.isnan(robustness(NLL, higher_is_better=True).regret_of_middle)


def test_the_signed_rank_test_by_enumeration() -> None:
    first, second = np.array([0.9, 0.3, 0.8, 0.1, 0.7]), np.array([0.2, 0.4, 0.6, 0.05, 0.3])
    ranks = np.argsort(np.argsort(np.abs(first - second))) + 1
    seen = ranks[first > second].sum()
    sums = [sum(rank for rank, bit in zip(ranks, f"{n:05b}", strict=True) if bit == "1") for n in range(32)]
    tail = min(np.mean([total >= seen for total in sums]), np.mean([total <= seen for total in sums]))
    assert signed_rank_p(first, second) == pytest.approx(2 * tail)
    assert signed_rank_p(first, first) == 1.0


def test_an_interval_over_cells_is_that_of_a_slow_bootstrap() -> None:
    values, generator = NLL.ravel(), np.random.default_rng(3)
    slow = []
    for _ in range(500):
        rows = generator.integers(10, size=10)
        slow.append(np.sort(values[rows])[4:6].mean() - np.sort((values**2)[rows])[4:6].mean())
    low, high = interval_over_cells(median, values, values**2, num_resamples=20_000)
    # Quantiles of 500 draws: the ranks that they may have, at four standard errors.
    for number, share in ((low, 0.025), (high, 0.975)):
        error = 4 * math.sqrt(share * (1 - share) / 500)
        assert np.mean(np.array(slow) < number) <= share + error
        assert np.mean(np.array(slow) <= number) >= share - error


def test_an_interval_over_rows_has_the_width_of_a_mean() -> None:
    losses = np.random.default_rng(0).standard_normal((1, 4_000))
    low, high = interval_over_rows(median, losses, num_resamples=4_000)
    half = norm.ppf(0.975) * losses.std() / math.sqrt(4_000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)  # a quantile of 4,000 draws to four standard errors
    assert (high + low) / 2 == pytest.approx(losses.mean(), abs=0.1 * half)
    # Paired, what rows have in common cancels.
    both = np.concatenate([losses, losses + 0.5])
    assert interval_over_rows(median, losses + 0.5, losses, num_resamples=100) == pytest.approx((0.5, 0.5))
    assert interval_over_rows(spread, both, num_resamples=100) == pytest.approx((0.5, 0.5))


def test_statistics_are_of_the_last_dimension() -> None:
    for statistic in (spread, inter_quartile_range, intrinsic_robustness, median):
        assert statistic(NLL) == pytest.approx([float(statistic(row)) for row in NLL])


def test_regrets_of_points_are_those_of_a_grid() -> None:
    of_points = -NLL.mean(1)
    found = robustness(NLL, higher_is_better=False, middle=1)
    assert regret_of_random(of_points) == pytest.approx(found.regret_of_random)
    assert largest_gain(of_points - of_points[1]) == pytest.approx(found.regret_of_middle)
    assert largest_gain((of_points - of_points[2])[[0, 1, 3]]) == 0.0  # the best, whatever points come along


def test_holms_correction_by_its_definition() -> None:
    """Step by step: the smallest is multiplied by their number, the next by one less, and none is below one before."""
    p_values = np.random.default_rng(0).uniform(size=40) ** 3
    left, corrected, before = list(range(40)), np.empty(40), 0.0
    while left:
        smallest = min(left, key=lambda number: p_values[number])
        before = corrected[smallest] = min(1.0, max(before, len(left) * p_values[smallest]))
        left.remove(smallest)
    assert holm(p_values) == pytest.approx(corrected, rel=1e-15)
    assert (holm(p_values) <= np.minimum(1, 40 * p_values)).all()  # at most Bonferroni's
    assert holm(np.array([0.2, math.nan, 0.01])) == pytest.approx([0.2, math.nan, 0.02], nan_ok=True)


def test_the_correction_keeps_false_alarms_below_its_level() -> None:
    draws = np.random.default_rng(1).uniform(size=(2_000, 8))
    alarms, uncorrected = (np.mean([(of(row) < 0.05).any() for row in draws]) for of in (holm, np.asarray))
    assert alarms <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2_000)
    assert uncorrected > 0.3  # 1 - .95^8 = .34: what it is there for


@pytest.mark.parametrize(("factor", "low", "high"), [(1.0, 0.0, 0.05), (4.0, 0.95, 1.0)])
def test_the_test_of_distances_sees_that_one_moves_less_and_nothing_else(
    factor: float, low: float, high: float
) -> None:
    generator, found = np.random.default_rng(2), []
    for _ in range(400):
        shared, (first, second) = generator.standard_normal(27), generator.standard_normal((2, 27))
        # What both have in common, and how good they are, does not matter.
        found.append(distances_p(shared + first, 10 + factor * (shared + second)) < 0.05)
    error = 4 * math.sqrt(0.05 * 0.95 / 400)
    assert low - error <= np.mean(found) <= high + error


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="leave out cells that failed"):
        robustness(np.array([[math.nan]]), higher_is_better=True)
    with pytest.raises(DataError, match="3 and 2 cells cannot be paired"):
        signed_rank_p(np.ones(3), np.ones(2))
    with pytest.raises(DataError, match="3 and 2 cells cannot be paired"):
        interval_over_cells(median, np.ones(3), np.ones(2))
    with pytest.raises(DataError, match="are not the same rows"):
        interval_over_rows(median, np.ones((2, 3)), np.ones((2, 4)))
