"""The KL averaged over the Wishart: against 50-digit closed forms and against the mean of the KL at its draws."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_lora.distributions.column_normal import ColumnNormal
from bayes_lora.distributions.expected_normal import ExpectedColumnNormal
from bayes_lora.distributions.wishart import Wishart, cholesky_factor
from tests.networks import CLOSED_FORMS
from tests.statistics import assert_mean, deviation

COLUMNS, DRAWS = 5, 4_000
IDS = range(len(CLOSED_FORMS))
NU = torch.tensor([4.5, 7.0], dtype=torch.double)
V = torch.tensor([[0.5, 1.5, 0.9], [2.0, 0.3, 1.1]], dtype=torch.double)
SPREAD = torch.tensor([0.4, 1.3], dtype=torch.double)


def locations(*batch: int) -> Tensor:
    return torch.randn(*batch, COLUMNS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def prior(rank: int, *batch: int, scale: float = 1.0) -> ColumnNormal:
    return ColumnNormal(scale * torch.eye(rank, dtype=torch.double).expand(*batch, rank, rank), COLUMNS)


def drawn(nu: Tensor, v: Tensor) -> ExpectedColumnNormal:
    wishart = Wishart(nu, v)
    return ExpectedColumnNormal(cholesky_factor(wishart.rsample()), COLUMNS, wishart)


@pytest.mark.parametrize("case", CLOSED_FORMS, ids=IDS)
def test_it_is_the_closed_form(case: dict[str, Any]) -> None:
    v = torch.tensor([case["scale_diagonal"]], dtype=torch.double)
    q = drawn(torch.tensor([case["degrees_of_freedom"]], dtype=torch.double), v)
    kl = kl_divergence(q, prior(v.shape[-1], 1))
    assert kl.tolist() == [[pytest.approx(case["expected_normal_kl"], rel=1e-9)] * COLUMNS]


@pytest.mark.parametrize("case", CLOSED_FORMS[::3], ids=IDS[::3])
def test_a_wrong_nu_is_seen(case: dict[str, Any]) -> None:
    v = torch.tensor([case["scale_diagonal"]], dtype=torch.double)
    q = drawn(torch.tensor([case["degrees_of_freedom"] + 1e-3], dtype=torch.double), v)
    kl = kl_divergence(q, prior(v.shape[-1], 1))
    assert kl[0, 0].item() != pytest.approx(case["expected_normal_kl"], rel=1e-9)


def sampled_kl(scale: float, loc: Tensor | None) -> Tensor:
    """KL (draw, adapter, column) at draws of Sigma, columns N(loc, s^2 Sigma)."""
    factor = SPREAD[:, None, None] * cholesky_factor(Wishart(NU, V).rsample(torch.Size((DRAWS,))))
    return kl_divergence(ColumnNormal(factor, COLUMNS, loc), prior(3, DRAWS, 2, scale=scale))


def expected_kl(scale: float, loc: Tensor | None, nu: Tensor = NU) -> Tensor:
    wishart = Wishart(nu, V)
    factor = SPREAD[:, None, None] * cholesky_factor(wishart.rsample())
    return kl_divergence(ExpectedColumnNormal(factor, COLUMNS, wishart, SPREAD, loc), prior(3, 2, scale=scale))


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("with_loc", [False, True])
def test_it_is_the_mean_of_the_kl_at_the_draws(with_loc: bool, scale: float) -> None:
    loc = locations(2) if with_loc else None
    draws = sampled_kl(scale, loc)
    expected = expected_kl(scale, loc)
    assert expected.shape == (2, COLUMNS)
    assert_mean(draws, expected)
    assert deviation(draws, expected_kl(scale, loc, NU + 1)).abs().max() > 8


def test_draws_densities_and_moments_are_those_given_sigma() -> None:
    wishart = Wishart(NU, V)
    factor = cholesky_factor(wishart.rsample())
    found = []
    for q in (
        ColumnNormal(factor, COLUMNS, locations(2)),
        ExpectedColumnNormal(factor, COLUMNS, wishart, loc=locations(2)),
    ):
        torch.manual_seed(0)
        value = q.rsample()
        found.append((value, q.log_prob(value), q.mean, q.variance))
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_shapes_beside_components_and_outer_draws() -> None:
    wishart = Wishart(NU.unsqueeze(-1), V.unsqueeze(-2))
    factor = cholesky_factor(Wishart(NU, V).rsample(torch.Size((6,)))).unsqueeze(-3).expand(6, 2, 4, 3, 3)
    q = ExpectedColumnNormal(factor, COLUMNS, wishart)
    kl = kl_divergence(q, prior(3, 6, 2, 4))
    assert kl.shape == q.batch_shape == (6, 2, 4, COLUMNS)
    one = kl_divergence(drawn(NU, V), prior(3, 2))
    torch.testing.assert_close(kl, one.unsqueeze(-2).expand(6, 2, 4, COLUMNS))
    wide = q.expand((7, 6, 2, 4, COLUMNS))
    assert q.expand(q.batch_shape) is q
    assert wide.batch_shape == (7, 6, 2, 4, COLUMNS)
    torch.testing.assert_close(kl_divergence(wide, prior(3, 6, 2, 4)), kl.expand(7, -1, -1, -1, -1))


def test_autocast_changes_nothing() -> None:
    def run() -> Tensor:
        torch.manual_seed(0)
        return kl_divergence(drawn(NU.float(), V.float()), ColumnNormal(2 * torch.eye(3).expand(2, 3, 3), COLUMNS))

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(), plain)
