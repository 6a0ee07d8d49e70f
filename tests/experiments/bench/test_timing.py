"""What the rounds of a bench allow to say, against hand computation and simulation."""

import math
from itertools import count, pairwise

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from numpy.testing import assert_allclose

from bayes_lora.experiments.bench.plots import growth
from bayes_lora.experiments.bench.results import Record, Results
from bayes_lora.experiments.bench.timing import Estimate, least_squares, median_interval, race, ratio_interval, timed


def test_the_interval_of_nine_values() -> None:
    # P(X < 2) = (1 + 9) / 2^9 for X ~ Binomial(9, 1/2), and P(X < 3) = 46 / 2^9 would be too much.
    values = [7.0, 1.0, 9.0, 4.0, 2.0, 6.0, 3.0, 8.0, 5.0]
    assert median_interval(values) == Estimate(5.0, 2.0, 8.0, 1 - 2 * 10 / 512, 9)
    assert median_interval(values, confidence=0.8) == Estimate(5.0, 3.0, 7.0, 1 - 2 * 46 / 512, 9)


def test_few_values_have_their_range() -> None:
    assert median_interval([2.0, 1.0, 4.0, 3.0, 10.0]) == Estimate(3.0, 1.0, 10.0, 1 - 2 / 32, 5)
    assert median_interval([2.0]) == Estimate(2.0, 2.0, 2.0, 0.0, 1)


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    # A skewed distribution, as times have it: the median of a standard exponential is ln 2.
    repeats = 2000
    estimates = [median_interval(row) for row in np.random.default_rng(0).exponential(size=(repeats, 21)).tolist()]
    coverage = estimates[0].coverage
    assert 0.95 <= coverage < 0.98
    hits = sum(estimate.low <= math.log(2) <= estimate.high for estimate in estimates)
    # Fails once in 15,000 seeds.
    assert abs(hits - repeats * coverage) < 4 * math.sqrt(repeats * coverage * (1 - coverage))


def test_a_ratio_is_taken_within_a_round() -> None:
    slow_machine = np.array([1.0, 5.0, 2.0, 9.0, 3.0, 4.0])
    assert ratio_interval((2 * slow_machine).tolist(), slow_machine.tolist()) == Estimate(2.0, 2.0, 2.0, 1 - 2 / 64, 6)


def test_least_squares_is_numpys() -> None:
    x, y = [18.0, 36.0, 72.0, 108.0, 144.0], [5.9, 6.6, 9.1, 10.2, 13.0]
    line = least_squares(x, y)
    (slope, fixed), covariance = np.polyfit(x, y, 1, cov=True)
    assert_allclose([line.slope, line.fixed], [slope, fixed], rtol=1e-9)
    assert_allclose([line.slope_error, line.fixed_error], np.sqrt(np.diag(covariance)), rtol=1e-9)
    predicted = fixed + slope * np.array(x)
    assert_allclose(line.deviation, np.abs(np.array(y) / predicted - 1).max(), rtol=1e-9)
    exact = least_squares([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    assert_allclose([exact.fixed, exact.slope, exact.fixed_error, exact.slope_error, exact.deviation], [1, 2, 0, 0, 0])


def test_rounds_interleave_and_turns_are_alike() -> None:
    taken: list[tuple[str, int]] = []
    ticks: list[int] = []

    def turn(name: str, seconds: float, steps: int) -> float:
        taken.append((name, steps))
        return seconds

    turns = {name: lambda steps, name=name: turn(name, 0.04, steps) for name in "abc"}
    seconds = race(turns, 20, on_turn=lambda: ticks.append(1))
    assert {name: len(values) for name, values in seconds.items()} == {"a": 20, "b": 20, "c": 20}
    assert len(ticks) == 60
    assert taken[:3] == [("a", 1), ("b", 1), ("c", 1)]
    rounds = [taken[start : start + 3] for start in range(3, len(taken), 3)]
    assert all({name for name, _ in one} == {"a", "b", "c"} for one in rounds)
    assert len({tuple(name for name, _ in one) for one in rounds}) > 3
    # 0.2 s of steps of 0.04 s.
    assert {steps for one in rounds for _, steps in one} == {5}
    again = taken[3:]
    taken.clear()
    race(turns, 20)
    assert taken[3:] == again


def test_a_turn_leaves_its_first_step_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    steps: list[int] = []
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    assert timed(lambda: steps.append(next(clock)))(4) == (4 + 1) / 4  # the clock ticks at each step, and when read
    assert len(steps) == 5
    assert [later - earlier for earlier, later in pairwise(steps)] == [2, 1, 1, 1]


def test_the_picture_shows_the_ratios() -> None:
    def record(contender: str, components: int, ratio: float) -> Record:
        case: dict[str, int | str] = {"batch": 1, "tokens": 8, "components": components}
        estimate = Estimate(ratio, ratio - 0.1, ratio + 0.2, 0.95, 21)
        named = f"{contender}_n{components}", f"{contender}, N = {components}", True
        return Record("components", case, *named, "step", "s", Estimate(1, 1, 1, 0.95, 21), {"lora": estimate})

    records = [record("paper", 1, 1.1), record("paper", 16, 1.2), record("other", 1, 2.0), record("other", 16, 4.0)]
    (axes,) = growth(Results({}, {}, records)).axes
    drawn = [bars for bars in axes.containers if isinstance(bars, ErrorbarContainer)]
    assert [bars.get_label() for bars in drawn] == ["paper", "other"]
    assert [np.asarray(bars.lines[0].get_xydata()).tolist() for bars in drawn] == [
        [[1, 1.1], [16, 1.2]],
        [[1, 2], [16, 4]],
    ]
    (span,) = drawn[1].lines[2]
    assert_allclose([segment[:, 1] for segment in span.get_segments()], [[1.9, 2.2], [3.9, 4.2]])
    assert axes.get_xlabel() == "N, components, at 1 x 8 tokens"
    assert axes.get_ylabel() == "a step, in steps of PEFT LoRA"
