"""The paired bootstrap against all resamples of a tiny case, against itself done slowly, and by simulation."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.metrics import bootstrap
from bayes_lora.metrics.bootstrap import (
    Difference,
    Statistic,
    mean_and_standard_error,
    mean_difference,
    metric_difference,
    one_by_one,
)
from bayes_lora.metrics.uncertainty import auroc, batched_auroc

FAILURE_RATE = 1e-4  # of a simulation below, were the method exact
ZERO = torch.zeros(3, dtype=torch.double)


def nothing(rows: Tensor) -> Tensor:
    return torch.zeros(len(rows))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def mean_of(losses: Tensor) -> Statistic:
    return lambda rows: losses[rows].mean(-1)


def test_a_tiny_case_against_all_resamples() -> None:
    paired = torch.tensor([-1.0, 2.0, 5.0], dtype=torch.double)
    every = sorted(sum(rows) / 3 for rows in itertools.product(paired.tolist(), repeat=3))
    below = sum(value <= 0 for value in every) / 27
    num_resamples = 40_000
    for confidence in (0.5, 0.8, 0.95):
        found = mean_difference(paired, ZERO, num_resamples=num_resamples, confidence=confidence)
        assert (found.estimate, found.num_resamples) == (2.0, num_resamples)
        # The smallest of the 27 that at least the share q do not exceed; q is 4 standard errors from any such share.
        for end, q in ((found.low, (1 - confidence) / 2), (found.high, (1 + confidence) / 2)):
            error = math.sqrt(q * (1 - q) / num_resamples)
            assert min(abs(k / 27 - q) for k in range(28)) > 4 * error
            assert end == pytest.approx(every[math.ceil(27 * q) - 1])
        assert abs(found.p_value - 2 * below) < 4 * 2 * math.sqrt(below * (1 - below) / num_resamples)
    assert 0.2 < 2 * below < 0.5


def test_means_and_any_metric_are_the_same_bootstrap() -> None:
    first, second = normal(40), normal(40, seed=1) + 0.2
    fast = mean_difference(first, second, num_resamples=300, seed=5, confidence=0.9)
    slow = metric_difference([mean_of(first)], [mean_of(second)], 40, num_resamples=300, seed=5, confidence=0.9)
    assert_same(fast, slow)
    assert fast.low < fast.estimate < fast.high
    assert fast.estimate == pytest.approx((first - second).mean().item())


def test_seeds_share_their_rows() -> None:
    first, second = normal(3, 40), normal(2, 40, seed=1) + 0.2
    fast = mean_difference(first, second, num_resamples=300)
    slow = metric_difference([mean_of(x) for x in first], [mean_of(x) for x in second], 40, num_resamples=300)
    assert_same(fast, slow)
    assert fast.estimate == pytest.approx(first.mean().item() - second.mean().item())
    # The same run five times knows no more than once. Rows drawn for each seed would make the interval sqrt(5) shorter.
    once = mean_difference(first[0], second[0])
    assert_same(mean_difference(first[:1].expand(5, -1), second[:1].expand(5, -1)), once)


def assert_same(found: Difference, expected: Difference) -> None:
    for name in ("estimate", "low", "high", "p_value", "num_resamples"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9), name


NUM_SIMULATIONS, NUM_ROWS = 1000, 100


def simulate(losses_of: Callable[[int], tuple[Tensor, Tensor]], truth: float = 0.0) -> tuple[int, int]:
    """How many 95 % intervals hold the true difference, and how many p-values are at most .05."""
    covered = rejected = 0
    for seed in range(NUM_SIMULATIONS):
        found = mean_difference(*losses_of(seed), num_resamples=400, seed=seed)
        covered += found.low <= truth <= found.high
        rejected += found.p_value <= 0.05
    return covered, rejected


def is_binomial(count: int, share: float) -> bool:
    low, high = stats.binom.interval(1 - FAILURE_RATE, NUM_SIMULATIONS, share)
    return bool(low <= count <= high)


def paired_losses(seed: int) -> tuple[Tensor, Tensor]:
    """Of equally good methods: most of a row's loss is the row's own."""
    shared, first, second = normal(3, NUM_ROWS, seed=seed)
    return 3 * shared + first, 3 * shared + second


def test_coverage_and_size() -> None:
    covered, rejected = simulate(paired_losses)
    assert is_binomial(covered, 0.95), covered
    assert is_binomial(rejected, 0.05), rejected


def test_coverage_where_there_is_a_difference() -> None:
    def shifted(seed: int) -> tuple[Tensor, Tensor]:
        first, second = paired_losses(seed)
        return first + 0.3, second

    covered, rejected = simulate(shifted, truth=0.3)
    assert is_binomial(covered, 0.95), covered
    # The test sees 2.1 standard errors a little more often than not.
    assert 0.4 * NUM_SIMULATIONS < rejected < 0.75 * NUM_SIMULATIONS


def test_coverage_of_a_share() -> None:
    def right_or_wrong(seed: int) -> tuple[Tensor, Tensor]:
        shared, first, second = normal(3, NUM_ROWS, seed=seed)
        return (shared + 0.7 * first > -0.8).double(), (shared + 0.7 * second > -0.8).double()

    covered, rejected = simulate(right_or_wrong)
    assert is_binomial(covered, 0.95), covered
    # Ties count on both sides, so accuracies are found different a little less often than said.
    assert stats.binom.ppf(FAILURE_RATE, NUM_SIMULATIONS, 0.02) <= rejected
    assert rejected <= stats.binom.ppf(1 - FAILURE_RATE, NUM_SIMULATIONS, 0.05)


def test_the_simulation_sees_a_wrong_bootstrap() -> None:
    def unpaired(seed: int) -> tuple[Tensor, Tensor]:
        first, second = paired_losses(seed)
        return first, second.roll(1)

    def repeated(seed: int) -> tuple[Tensor, Tensor]:
        first, second = paired_losses(seed)
        return first.repeat(2), second.repeat(2)

    covered, rejected = simulate(unpaired)
    assert not is_binomial(covered, 0.95)
    assert not is_binomial(rejected, 0.05)
    covered, rejected = simulate(repeated)
    assert not is_binomial(covered, 0.95)
    assert not is_binomial(rejected, 0.05)


def test_a_real_difference_is_found() -> None:
    first = normal(400)
    second = first + 0.1 + 0.3 * normal(400, seed=1)
    found = mean_difference(first, second)
    assert found.high < 0
    assert found.p_value == pytest.approx(2 / 10_001)
    # From the other side, the same.
    other = mean_difference(second, first)
    expected = (-found.high, -found.low, found.p_value)
    assert (other.low, other.high, other.p_value) == pytest.approx(expected, rel=1e-9)


def test_methods_that_agree() -> None:
    losses = normal(50)
    assert mean_difference(losses, losses) == Difference(0.0, 0.0, 0.0, 1.0, 10_000)
    # Equal but for rounding: a sum over seeds in another order.
    seeds = normal(5, 50)
    found = mean_difference(seeds, seeds.flip(0))
    assert (seeds.mean(0) - seeds.flip(0).mean(0)).count_nonzero() > 0
    assert (found.low, found.high, found.p_value) == (0, 0, 1)


def test_a_single_row() -> None:
    found = mean_difference(torch.tensor([0.5]), torch.tensor([0.25]), num_resamples=99)
    assert found == Difference(0.25, 0.25, 0.25, 2 / 100, 99)


def test_resamples_on_which_the_metric_has_no_value_are_left_out() -> None:
    scores, wrong = torch.arange(6.0), torch.tensor([False, False, True, False, False, False])
    of = [one_by_one(lambda rows: auroc(scores[rows], wrong[rows]))]
    opposite = [one_by_one(lambda rows: auroc(-scores[rows], wrong[rows]))]
    found = metric_difference(of, opposite, 6, num_resamples=300)
    share = 1 - (5 / 6) ** 6 - (1 / 6) ** 6
    assert stats.binom.ppf(FAILURE_RATE, 300, share) <= found.num_resamples
    assert found.num_resamples <= stats.binom.ppf(1 - FAILURE_RATE, 300, share)
    assert found.estimate == pytest.approx(-0.2)
    assert -1 <= found.low < found.high <= 1


def test_a_metric_without_a_value() -> None:
    found = metric_difference([one_by_one(lambda rows: math.nan)], [nothing], 5, num_resamples=10)
    assert all(math.isnan(value) for value in (found.estimate, found.low, found.high, found.p_value))
    assert found.num_resamples == 0


def test_one_set_of_rows_and_many_are_the_same() -> None:
    def at_once(seed: int) -> Statistic:
        scores, wrong = normal(50, seed=seed).round(decimals=1), normal(50, seed=seed + 2) > 0
        return partial(batched_auroc, scores, wrong)

    def slow(seed: int) -> Statistic:
        scores, wrong = normal(50, seed=seed).round(decimals=1), normal(50, seed=seed + 2) > 0
        return one_by_one(lambda rows: auroc(scores[rows], wrong[rows]))

    fast = metric_difference([at_once(0)], [at_once(1)], 50, num_resamples=200)
    assert_same(fast, metric_difference([slow(0)], [slow(1)], 50, num_resamples=200))
    assert fast.low < fast.estimate < fast.high


@pytest.mark.parametrize("statistic", [lambda rows: 0.5, lambda rows: torch.tensor(0.5), lambda rows: rows[:, 0:1]])
def test_a_statistic_of_another_form(statistic: Statistic) -> None:
    with pytest.raises(ConfigurationError, match=r"\(1, 3\), where one number for each resample.*one_by_one"):
        metric_difference([statistic], [nothing], 3)


def test_strata_keep_their_sizes() -> None:
    strata = torch.tensor([0, 1, 1, 0, 1, 1, 1])
    seen = []

    def count(rows: Tensor) -> Tensor:
        assert rows.shape[1] == 7
        seen.append(rows)
        return strata[rows].sum(-1)

    found = metric_difference([count], [nothing], 7, strata=strata, num_resamples=200)
    assert found == Difference(5.0, 5.0, 5.0, 2 / 201, 200)
    # Every row of either stratum is drawn, and repeated.
    drawn = torch.cat(seen[1:])
    assert set(drawn.flatten().tolist()) == set(range(7))
    assert any(len(set(rows.tolist())) < 7 for rows in drawn)
    # Without strata, the count varies.
    assert metric_difference([count], [nothing], 7, num_resamples=200).low < 5


def test_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = normal(30), normal(30, seed=1)
    before = torch.get_rng_state()
    found = mean_difference(first, second, num_resamples=500, seed=3)
    assert mean_difference(first, second, num_resamples=500, seed=3) == found
    assert mean_difference(first, second, num_resamples=500, seed=4) != found
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    # In parts that fit into memory, the last one smaller.
    monkeypatch.setattr(bootstrap, "_INDICES_AT_ONCE", 100 * 30 - 1)
    parts = mean_difference(first, second, num_resamples=500, seed=3)
    assert parts.num_resamples == 500
    assert (parts.low, parts.high) == pytest.approx((found.low, found.high), abs=0.1)


def test_mean_and_standard_error() -> None:
    values = [0.1, 0.4, 0.3, 0.9]
    mean, error = mean_and_standard_error(values)
    assert mean == pytest.approx(0.425)
    assert error == pytest.approx(stats.sem(values))
    assert mean_and_standard_error([0.3, 0.3]) == (0.3, 0.0)
    mean, error = mean_and_standard_error([0.3])
    assert mean == 0.3
    assert math.isnan(error)
    with pytest.raises(DataError, match="no seeds"):
        mean_and_standard_error([])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        (torch.zeros(0), torch.zeros(0)),
        (torch.zeros(0, 3), torch.zeros(0, 3)),
        (torch.zeros(1, 2, 3), torch.zeros(3)),
        (torch.tensor(0.0), torch.tensor(0.0)),
    ],
)
def test_losses_of_different_rows(first: Tensor, second: Tensor) -> None:
    with pytest.raises(DataError, match=r"needs losses \(example,\) or \(seed, example\).*same rows with both"):
        mean_difference(first, second)


def test_losses_that_are_no_numbers() -> None:
    with pytest.raises(DataError, match="some losses are NaN or infinite"):
        mean_difference(torch.tensor([0.0, math.nan]), torch.zeros(2))


def test_options_out_of_range() -> None:
    losses = torch.zeros(3)
    with pytest.raises(ConfigurationError, match=r"confidence=1\.0 must lie between 0 and 1"):
        mean_difference(losses, losses, confidence=1.0)
    with pytest.raises(ConfigurationError, match="num_resamples=0 must be an integer >= 1"):
        mean_difference(losses, losses, num_resamples=0)
    with pytest.raises(ConfigurationError, match="seed=-1 must be"):
        mean_difference(losses, losses, seed=-1)
    with pytest.raises(ConfigurationError, match="no training seeds to compare"):
        metric_difference([], [mean_of(losses)], 3)
    with pytest.raises(ConfigurationError, match="num_examples=0 must be"):
        metric_difference([mean_of(losses)], [mean_of(losses)], 0)
    with pytest.raises(DataError, match=r"strata of shape \(2,\) for 3 rows"):
        metric_difference([mean_of(losses)], [mean_of(losses)], 3, strata=torch.zeros(2))
