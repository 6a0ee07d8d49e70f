"""The variance of a stochastic gradient: its estimates against slow twins, and what the suite measures on a network."""

import math

import numpy as np
import pytest
import torch

from bayes_lora.experiments.bench.cases import Case, loaded_base
from bayes_lora.experiments.bench.gradients import (
    PARAMETERS,
    DrawnGradients,
    Gradient,
    Objective,
    gradient_noise,
    gradients,
    product,
    variance,
    variance_ratio,
)
from bayes_lora.experiments.bench.timing import Estimate
from bayes_lora.inference import ItemizedELBO

SCALES = torch.tensor([1.0, 0.5, 2.0], dtype=torch.double)


def draws_of(vectors: torch.Tensor) -> np.ndarray:
    """Squared distances (draw,) of vectors (draw, entry) to their mean, as the bench has them."""
    return DrawnGradients.of([Gradient(1.0, dict.fromkeys(PARAMETERS, vector), 0.0) for vector in vectors]).distances[
        "v"
    ]


def trace(vectors: torch.Tensor) -> float:
    return float(torch.cov(vectors.T).trace())


def jackknife_interval(value: float, left_out: list[float]) -> tuple[float, float]:
    logs = np.log(left_out)
    error = math.sqrt((len(logs) - 1) * np.var(logs))
    return value * math.exp(-1.96 * error), value * math.exp(1.96 * error)


def without(vectors: torch.Tensor, index: int) -> torch.Tensor:
    return torch.cat([vectors[:index], vectors[index + 1 :]])


def test_the_trace_of_the_covariance_and_its_jackknife() -> None:
    vectors = torch.randn(9, 3, dtype=torch.double) * SCALES
    others = torch.randn(9, 3, dtype=torch.double)
    found = variance(draws_of(vectors))
    assert found.median == pytest.approx(trace(vectors), rel=1e-12)
    interval = jackknife_interval(trace(vectors), [trace(without(vectors, i)) for i in range(9)])
    assert (found.low, found.high) == pytest.approx(interval, rel=1e-9)
    ratio = variance_ratio(draws_of(vectors), draws_of(others))
    assert ratio.median == pytest.approx(trace(vectors) / trace(others), rel=1e-12)
    left_out = [trace(without(vectors, i)) / trace(without(others, i)) for i in range(9)]
    assert (ratio.low, ratio.high) == pytest.approx(jackknife_interval(ratio.median, left_out), rel=1e-9)


def test_the_interval_holds_the_variance_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    expected, held, common = SCALES.square().sum().item(), 0, 0
    for _ in range(1000):
        vectors = torch.randn(60, 3, generator=generator, dtype=torch.double) * SCALES
        other = 2 * vectors + torch.randn(60, 3, generator=generator, dtype=torch.double)
        found, ratio = variance(draws_of(vectors)), variance_ratio(draws_of(other), draws_of(vectors))
        held += found.low <= expected <= found.high
        common += ratio.low <= (4 * expected + 3) / expected <= ratio.high
    # Nominally 950; the jackknife of 60 draws falls a little short.
    assert 905 <= held <= 975
    assert 905 <= common <= 975


def test_a_product_is_as_uncertain_as_its_factors() -> None:
    first, second = Estimate(2.0, 1.0, 4.0, 0.95, 9), Estimate(3.0, 3.0, 3.0, 0.95, 9)
    assert product(first, second) == Estimate(6.0, pytest.approx(3.0), pytest.approx(12.0), 0.95, 9)  # type: ignore[arg-type]
    both = product(first, first)
    assert both.high / both.median == pytest.approx(math.exp(math.sqrt(2) * math.log(2)))


def test_a_seed_repeats_a_gradient(base: str) -> None:
    case = Case(base, 1, 8)
    loaded_base.cache_clear()  # the base model's head, drawn at random, is the same in another process, too
    first = gradients(case, 4, ItemizedELBO())(0)
    loaded_base.cache_clear()
    draw = gradients(case, 4, ItemizedELBO())
    again, other = draw(0), draw(1)
    for parameter, gradient in first.by.items():
        assert gradient.any()
        assert torch.equal(gradient, again.by[parameter])
        assert not torch.equal(gradient, other.by[parameter])


def test_the_expected_kl_takes_the_noise_of_v_away(base: str) -> None:
    asked = Objective("paper", ("kl_weight", 1.0), ("collapsed", "explicit"), 3)
    records = gradient_noise(Case(base, 2, 8), asked, 8)
    found = {(record.contender, record.quantity): record for record in records}
    ways = ("paper_n3", "paper_expected_n3", "paper_explicit_n3", "paper_explicit_expected_n3")
    particles = [f"{way}_{two}_n3" for way in ("paper", "paper_expected") for two in ("two", "pair")]
    quantities = ("gradient", "kl_share", *(f"{kind}_{name}" for kind in ("variance", "cost") for name in PARAMETERS))
    assert set(found) == {(way, quantity) for way in (*ways, *particles) for quantity in quantities}
    assert {record.case["kl_weight"] for record in records} == {"1"}
    ratios = {way: found[way, "variance_v"].ratios.get("paper_n3") for way in ways}
    assert ratios.pop("paper_n3") is None
    expected, explicit, both = (ratio.median for ratio in ratios.values() if ratio is not None)
    assert max(expected, both) < 0.01
    assert 0.3 < explicit < 3
    # The KL of v tells alpha and mu nothing, and the draws are the same.
    for parameter in ("alpha", "mu"):
        assert found["paper_expected_n3", f"variance_{parameter}"].ratios["paper_n3"].median == pytest.approx(
            1, rel=1e-3
        )
    # Two independent draws have half the variance; a pair has far less of it where the likelihood makes it.
    two, pair = (found[name, "variance_mu"].ratios["paper_n3"].median for name in particles[:2])
    assert 0.2 < two < 1
    assert pair < two / 3
    time, spread, cost = (found["paper_n3", name].value.median for name in ("gradient", "variance_mu", "cost_mu"))
    assert cost == pytest.approx(time * spread)
