"""ColumnNormal against torch's MultivariateNormal, and the Dirichlet and normal KLs against 50-digit closed forms."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from bayes_lora.distributions import column_normal
from bayes_lora.distributions.column_normal import ColumnNormal, IsotropicColumnNormal
from bayes_lora.distributions.expected_normal import ExpectedColumnNormal
from bayes_lora.distributions.wishart import Wishart, cholesky_factor
from bayes_lora.errors import DistributionError
from tests.memory import peak_bytes
from tests.networks import CLOSED_FORMS
from tests.statistics import assert_mean

ADAPTERS, COLUMNS, RANK = 2, 5, 3
IDS = range(len(CLOSED_FORMS))


def factors(*batch: int, seed: int = 0) -> Tensor:
    """Random lower factors (*batch, rank, rank), positive on the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(*batch, RANK, RANK, generator=generator, dtype=torch.double).tril(-1)
    return lower + torch.diag_embed(0.3 + torch.rand(*batch, RANK, generator=generator, dtype=torch.double))


def locations(*batch: int, seed: int = 1) -> Tensor:
    return torch.randn(*batch, COLUMNS, RANK, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def twin(factor: Tensor, loc: Tensor | None) -> MultivariateNormal:
    """torch's own, with the factor repeated for every column."""
    expanded = factor.unsqueeze(-3).expand(*factor.shape[:-2], COLUMNS, RANK, RANK)
    return MultivariateNormal(torch.zeros(RANK, dtype=factor.dtype) if loc is None else loc, scale_tril=expanded)


CASES: list[Any] = [
    pytest.param(batch, with_loc, id=f"{batch} {'loc' if with_loc else 'zero'}")
    for batch in ((ADAPTERS,), (ADAPTERS, 4), (6, ADAPTERS))
    for with_loc in (False, True)
]


@pytest.mark.parametrize("case", CLOSED_FORMS, ids=IDS)
def test_dirichlet_kl(case: dict[str, Any]) -> None:
    q, p = (
        dist.Dirichlet(torch.tensor(case[name], dtype=torch.double))
        for name in ("concentration", "prior_concentration")
    )
    # At one component the weights are the constant 1.
    assert kl_divergence(q, p).item() == pytest.approx(case["dirichlet_kl"], rel=1e-9, abs=1e-12)


def unit_normal(rank: int, *batch: int) -> ColumnNormal:
    return ColumnNormal(torch.eye(rank, dtype=torch.double).expand(*batch, rank, rank), COLUMNS)


@pytest.mark.parametrize("case", CLOSED_FORMS, ids=IDS)
def test_kl_to_the_unit_normal(case: dict[str, Any]) -> None:
    covariance = torch.tensor([case["covariance"]], dtype=torch.double)
    q = ColumnNormal(cholesky_factor(covariance), COLUMNS)
    kl = kl_divergence(q, unit_normal(covariance.shape[-1], 1))
    assert kl.tolist() == [[pytest.approx(case["normal_kl"], rel=1e-9)] * COLUMNS]


@pytest.mark.parametrize("case", CLOSED_FORMS[::3], ids=IDS[::3])
def test_expected_kl_over_wishart_draws(case: dict[str, Any]) -> None:
    v = torch.tensor([case["scale_diagonal"]], dtype=torch.double)
    rank = v.shape[-1]
    num_draws = 40_000 // rank
    draws = Wishart(torch.tensor([case["degrees_of_freedom"]], dtype=torch.double), v).rsample(torch.Size((num_draws,)))
    kl = kl_divergence(ColumnNormal(cholesky_factor(draws), COLUMNS), unit_normal(rank, num_draws, 1))
    assert_mean(kl[:, 0, 0], case["expected_normal_kl"])


@pytest.mark.parametrize(("batch", "with_loc"), CASES)
def test_log_prob_is_torchs(batch: tuple[int, ...], with_loc: bool) -> None:
    factor, loc = factors(*batch), locations(*batch) if with_loc else None
    q = ColumnNormal(factor, COLUMNS, loc)
    value = q.rsample(torch.Size((7,)))
    torch.testing.assert_close(q.log_prob(value), twin(factor, loc).log_prob(value), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prior_loc", [False, True])
@pytest.mark.parametrize(("batch", "with_loc"), CASES)
def test_kl_is_torchs(batch: tuple[int, ...], with_loc: bool, prior_loc: bool) -> None:
    q = factors(*batch), locations(*batch) if with_loc else None
    p = factors(*batch, seed=5), locations(*batch, seed=6) if prior_loc else None
    ours = kl_divergence(ColumnNormal(q[0], COLUMNS, q[1]), ColumnNormal(p[0], COLUMNS, p[1]))
    expected = kl_divergence(twin(*q), twin(*p)).expand(*batch, COLUMNS)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("with_loc", [False, True])
def test_sampled_moments(with_loc: bool) -> None:
    factor, loc = factors(ADAPTERS), locations(ADAPTERS) if with_loc else None
    q = ColumnNormal(factor, COLUMNS, loc)
    draws = q.rsample(torch.Size((4_000,)))
    assert_mean(draws, q.mean)
    assert_mean((draws - q.mean).square(), q.variance)
    centred = draws - q.mean
    assert_mean(torch.einsum("saci,sacj->saij", centred, centred) / COLUMNS, factor @ factor.mT)
    # Columns are independent, and so are adapters.
    assert_mean(centred[:, :, 0] * centred[:, :, 1], 0.0)
    assert_mean(centred[:, 0] * centred[:, 1], 0.0)


def test_mean_and_variance_are_torchs() -> None:
    factor, loc = factors(ADAPTERS), locations(ADAPTERS)
    q = ColumnNormal(factor, COLUMNS, loc)
    torch.testing.assert_close(q.mean, twin(factor, loc).mean)
    torch.testing.assert_close(q.variance, twin(factor, loc).variance)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_invalid_factor(bad: float) -> None:
    factor = factors(ADAPTERS)
    factor[1, 2, 2] = bad
    with pytest.raises(DistributionError, match=r"ColumnNormal: scale_tril must have a positive, finite diagonal; got"):
        ColumnNormal(factor, COLUMNS)
    ColumnNormal(factor, COLUMNS, validate_args=False)


def test_shapes_and_expand() -> None:
    q = ColumnNormal(factors(ADAPTERS), COLUMNS, locations(ADAPTERS))
    assert (q.batch_shape, q.event_shape) == ((ADAPTERS, COLUMNS), (RANK,))
    wide = q.expand((6, ADAPTERS, COLUMNS))
    assert (wide.batch_shape, wide.event_shape) == ((6, ADAPTERS, COLUMNS), (RANK,))
    value = wide.rsample(torch.Size((7,)))
    assert value.shape == (7, 6, ADAPTERS, COLUMNS, RANK)
    assert wide.log_prob(value).shape == (7, 6, ADAPTERS, COLUMNS)
    torch.testing.assert_close(wide.log_prob(value), q.log_prob(value))
    torch.testing.assert_close(wide.mean, q.mean.expand(6, -1, -1, -1))
    with pytest.raises(DistributionError, match=r"cannot expand 5 columns to batch shape torch\.Size\(\[2, 6\]\)"):
        q.expand((ADAPTERS, COLUMNS + 1))


def test_autocast_changes_nothing() -> None:
    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        q = ColumnNormal(factors(ADAPTERS).float(), COLUMNS, locations(ADAPTERS).float())
        p = ColumnNormal(factors(ADAPTERS, seed=5).float(), COLUMNS)
        draw = q.rsample()
        return draw, q.log_prob(draw), kl_divergence(q, p)

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    assert [value.dtype for value in inside] == [torch.float32] * 3
    assert all(torch.equal(first, second) for first, second in zip(plain, inside, strict=True))


def test_the_factor_is_never_copied_per_column() -> None:
    adapters, columns, rank = 3, 512, 16
    noise = adapters * columns * rank * 8
    factor = torch.eye(rank, dtype=torch.double).expand(adapters, rank, rank).contiguous()
    q, p = ColumnNormal(factor, columns), ColumnNormal(2 * factor, columns)
    assert noise <= peak_bytes(q.rsample) <= 2.5 * noise
    assert noise <= peak_bytes(q.expand((adapters, columns)).rsample) <= 2.5 * noise
    # Nothing of the KL depends on the column where the means agree.
    assert peak_bytes(lambda: kl_divergence(q, p)) <= 8 * factor.nbytes < noise
    value = q.rsample()
    assert peak_bytes(lambda: q.log_prob(value)) <= 4 * noise
    wasteful = MultivariateNormal(torch.zeros(adapters, columns, rank).double(), scale_tril=factor.unsqueeze(1))
    assert peak_bytes(wasteful.rsample) > 2.5 * noise


def test_a_large_draw_without_gradients_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q = ColumnNormal(factors(ADAPTERS, 2), COLUMNS)
    draws = []
    for least in (column_normal._OVERWRITTEN_FROM, 1):
        monkeypatch.setattr(column_normal, "_OVERWRITTEN_FROM", least)
        torch.manual_seed(0)
        draws.append(q.rsample(torch.Size((3,))))
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normal_kl", ["sampled", "expected"])
@pytest.mark.parametrize(("batch", "with_loc"), [case.values for case in CASES])
def test_the_kl_to_the_prior_is_the_general_one(batch: tuple[int, ...], with_loc: bool, normal_kl: str) -> None:
    factor, loc = factors(*batch), locations(*batch) if with_loc else None
    wishart = Wishart(torch.full(batch, 4.0, dtype=torch.double), 0.1 + torch.rand(*batch, RANK, dtype=torch.double))
    q = ColumnNormal(factor, COLUMNS, loc)
    if normal_kl == "expected":
        q = ExpectedColumnNormal(factor, COLUMNS, wishart, None, loc)
    prior = IsotropicColumnNormal(0.7, factor, COLUMNS)
    general = ColumnNormal(prior.scale_tril, COLUMNS)
    torch.testing.assert_close(kl_divergence(q, prior), kl_divergence(q, general), rtol=1e-12, atol=1e-12)
    wider = IsotropicColumnNormal(0.71, factor, COLUMNS)  # not everything passes
    assert not torch.allclose(kl_divergence(q, wider), kl_divergence(q, general), rtol=1e-3)


def test_the_prior_broadcasts_and_draws_as_a_column_normal() -> None:
    prior = IsotropicColumnNormal(0.7, factors(ADAPTERS), COLUMNS)
    wide = prior.expand((6, ADAPTERS, COLUMNS))
    assert isinstance(wide, IsotropicColumnNormal)
    assert (wide.batch_shape, wide.std) == ((6, ADAPTERS, COLUMNS), 0.7)
    assert prior.expand(prior.batch_shape) is prior
    torch.manual_seed(0)
    expected = ColumnNormal(prior.scale_tril, COLUMNS).sample()
    torch.manual_seed(0)
    torch.testing.assert_close(prior.sample(), expected, rtol=0, atol=0)


def test_a_draw_lies_in_memory_as_lora_a_does() -> None:
    assert ColumnNormal(factors(ADAPTERS), COLUMNS).rsample().mT.is_contiguous()
