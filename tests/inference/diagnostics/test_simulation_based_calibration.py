"""Simulation-based calibration on theta ~ N(0, 1), y ~ N(theta, 1), whose posterior is N(y / 2, 1 / 2)."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.diagnostics.simulation_based_calibration import NUM_DRAWS, Ranks, rank_truth

Sampler = Callable[[Tensor, int, int], Tensor]


def simulate(seed: int) -> tuple[Tensor, Tensor]:
    theta, noise = torch.randn(2, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return theta + noise, theta


def posterior(y: Tensor, num_draws: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    noise = torch.randn(num_draws, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    draws: Tensor = y / 2 + shift + scale * 0.5**0.5 * noise
    return draws


def value_and_square(_: Tensor, theta: Tensor) -> Tensor:
    return torch.cat([theta, theta.square()], dim=-1)


def ranks(sampler: Sampler, replications: range, seed: int = 0) -> Ranks:
    return rank_truth(simulate, sampler, value_and_square, replications, seed=seed)


def test_the_right_posterior_has_even_ranks() -> None:
    found = ranks(posterior, range(400))
    assert found.values.shape == (400, 2)
    assert found.is_uniform


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.0), (2.0, 0.0), (1.0, 0.5)])
def test_a_wrong_posterior_has_uneven_ranks(scale: float, shift: float) -> None:
    assert ranks(partial(posterior, scale=scale, shift=shift), range(200)).verdict == "uneven"


def test_right_posteriors_are_called_uneven_as_rarely_as_declared() -> None:
    """P-values of even ranks, 300 times: at 5 % no more rejections than the binomial's 99.9th percentile."""
    generator = torch.Generator().manual_seed(0)
    trials = [Ranks(torch.randint(0, NUM_DRAWS + 1, (200, 11), generator=generator)) for _ in range(300)]
    rejected = sum(ranks.p_value < 0.05 for ranks in trials)
    assert rejected <= stats.binom.ppf(0.999, len(trials), 0.05)
    assert rejected > 0  # the test does reject


def test_few_replications_say_nothing() -> None:
    right = ranks(posterior, range(40))
    assert right.verdict == "even"
    assert Ranks(right.values[:39]).verdict == "too few"


def test_parts_put_together_are_the_whole() -> None:
    whole = ranks(posterior, range(6)).values
    assert torch.equal(whole, torch.cat([ranks(posterior, part).values for part in (range(2), range(2, 6))]))
    assert not torch.equal(whole, ranks(posterior, range(6), seed=1).values)


def test_ranks_count_the_draws_below_the_truth() -> None:
    def ladder(y: Tensor, num_draws: int, seed: int) -> Tensor:
        return torch.arange(num_draws, dtype=torch.float64).unsqueeze(-1) - 9.5  # ten of them below 0

    found = rank_truth(lambda seed: (torch.zeros(1), torch.zeros(1)), ladder, lambda _, theta: theta, range(2))
    assert (found.values == 10).all()


def test_ranks_must_share_the_bins() -> None:
    with pytest.raises(ConfigurationError, match="num_draws=60 gives 61 ranks, which 8 bins cannot share"):
        Ranks(torch.zeros(1, 1, dtype=torch.long), num_draws=60)
