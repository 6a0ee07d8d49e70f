"""Timing contenders against each other: interleaved rounds, and what they allow to say."""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

# Runs an untimed step and then this many timed ones; returns the seconds of one of these.
Turn = Callable[[int], float]
Key = TypeVar("Key")

_MOST_STEPS = 20


@dataclass(frozen=True)
class Estimate:
    """A median with its interval, or another estimate from several rounds.

    Attributes:
        median: of the rounds; or that estimate.
        low: lower end of the interval.
        high: upper end.
        coverage: probability that such an interval holds the true median, whatever the distribution of a round.
        rounds: how many values there were.
    """

    median: float
    low: float
    high: float
    coverage: float
    rounds: int


@dataclass(frozen=True)
class Line:
    """A least-squares line, ``y = fixed + slope * x``.

    Attributes:
        fixed: y at x = 0.
        fixed_error: its standard error.
        slope: y per unit of x.
        slope_error: its standard error.
        deviation: the largest distance of a point from the line, as a share of the line there.
    """

    fixed: float
    fixed_error: float
    slope: float
    slope_error: float
    deviation: float


def timed(step: Callable[[], object], device: str = "cpu") -> Turn:
    """A turn of a step that is called again and again; on CUDA the clock waits for the device at both ends."""

    def turn(steps: int) -> float:
        step()
        synchronize(device)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        return (time.perf_counter() - started) / steps

    return turn


def synchronize(device: str) -> None:
    """Wait for what was started on a CUDA device; the CPU has nothing to wait for."""
    if device == "cuda":
        torch.cuda.synchronize()


def race(
    turns: Mapping[Key, Turn],
    rounds: int,
    *,
    seed: int = 0,
    turn_seconds: float = 0.2,
    on_turn: Callable[[], None] = lambda: None,
) -> dict[Key, list[float]]:
    """Seconds per step of every contender in every round, {contender: (round,)}.

    In each round every contender has one turn, in an order drawn anew, so that whatever slows the machine for a while
    slows them all. All turns have the same number of steps. A collection of garbage is charged to nobody's turn but
    its own: the contenders' objects are kept out of it, and it is emptied before each turn.

    Args:
        turns: the contenders.
        rounds: turns of each.
        seed: of the orders.
        turn_seconds: short steps are repeated until a turn lasts about so long, or else the clock and the caches would
            be measured.
        on_turn: called after each turn, for progress bars.
    """
    order = list(turns)
    # The first steps make the optimizer's state, and fill the caches.
    shortest = min([turns[key](1) for key in order])
    steps = min(_MOST_STEPS, max(1, round(turn_seconds / shortest)))
    generator = np.random.default_rng(seed)
    seconds: dict[Key, list[float]] = {key: [] for key in order}
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            for index in generator.permutation(len(order)):
                key = order[index]
                gc.collect()
                seconds[key].append(turns[key](steps))
                on_turn()
    finally:
        gc.unfreeze()
    return seconds


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The median with the interval between two order statistics.

        P(x_(k) <= median <= x_(n + 1 - k)) >= 1 - 2 P(X < k),   X ~ Binomial(n, 1/2)

    with the largest k for which that reaches `confidence`. Fewer than 6 values cannot reach 95 %: then it is their
    range, and `coverage` says what that is worth.

    Source: David and Nagaraja, Order Statistics, section 7.1.

    Example:
        >>> median_interval([3.0, 1.0, 2.0])
        Estimate(median=2.0, low=1.0, high=3.0, coverage=0.75, rounds=3)
    """
    ordered, n = sorted(values), len(values)
    k = 1
    while k < (n + 1) // 2 and _coverage(n, k + 1) >= confidence:
        k += 1
    return Estimate(float(np.median(ordered)), ordered[k - 1], ordered[n - k], _coverage(n, k), n)


def _coverage(n: int, k: int) -> float:
    return 1.0 - 2 * sum(math.comb(n, j) for j in range(k)) / int(2**n)


def ratio_interval(values: Sequence[float], reference: Sequence[float]) -> Estimate:
    """The median of the ratios round by round, which is not the ratio of the medians."""
    return median_interval([value / other for value, other in zip(values, reference, strict=True)])


def least_squares(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line through at least three points, with standard errors from their distances to it (n - 2 of freedom).

    Example:
        >>> least_squares([0.0, 1.0, 2.0], [1.0, 3.0, 5.0]).slope
        2.0
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n, centre = len(xs), xs.mean()
    spread = ((xs - centre) ** 2).sum()
    slope = ((xs - centre) * (ys - ys.mean())).sum() / spread
    fixed = ys.mean() - slope * centre
    line = fixed + slope * xs
    variance = ((ys - line) ** 2).sum() / (n - 2)
    numbers: tuple[Any, ...] = (
        fixed,
        math.sqrt(variance * (1 / n + centre**2 / spread)),
        slope,
        math.sqrt(variance / spread),
        np.abs(ys / line - 1).max(),
    )
    return Line(*(float(number) for number in numbers))
