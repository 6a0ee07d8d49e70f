"""The Wishart: KLs and densities against torch and 50-digit closed forms, sampled moments, its travelling factor."""

import copy
import itertools
import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_lora.distributions.wishart import Wishart, cholesky_factor
from bayes_lora.errors import DistributionError
from tests.networks import CLOSED_FORMS
from tests.statistics import assert_mean, deviation

DF = torch.tensor([4.5, 9.0], dtype=torch.double)
V = torch.tensor([[0.5, 2.0, 1.1], [1.3, 0.2, 0.9]], dtype=torch.double)


def twin(df: Tensor = DF, v: Tensor = V) -> torch.distributions.Wishart:
    return torch.distributions.Wishart(df, covariance_matrix=torch.diag_embed(v))


@pytest.mark.parametrize("case", CLOSED_FORMS, ids=range(len(CLOSED_FORMS)))
def test_kl_to_the_unit_prior(case: dict[str, Any]) -> None:
    df = torch.tensor([case["degrees_of_freedom"]], dtype=torch.double)
    v = torch.tensor([case["scale_diagonal"]], dtype=torch.double)
    kl = kl_divergence(Wishart(df, v), Wishart(df, torch.ones_like(v)))
    assert kl.item() == pytest.approx(case["wishart_kl"], rel=1e-9)


def test_kl_at_equal_degrees_of_freedom_is_torchs() -> None:
    v = V.flip(0)
    expected = kl_divergence(twin(), twin(v=v))
    # Sharing the tensor of degrees of freedom skips terms that are 0.
    for df in (DF, DF.clone()):
        torch.testing.assert_close(kl_divergence(Wishart(DF, V), Wishart(df, v)), expected, rtol=1e-10, atol=0)


def test_kl_at_other_degrees_of_freedom() -> None:
    # Against draws: torch's own value, by its rule for exponential families, is wrong where df differs.
    q, p = Wishart(DF, V), Wishart(torch.tensor([7.25, 3.5], dtype=torch.double), V.flip(0))
    draws = q.rsample(torch.Size((20_000,)))
    ratio = twin().log_prob(draws) - twin(p.df, V.flip(0)).log_prob(draws)
    assert_mean(ratio, kl_divergence(q, p))


def test_log_prob_is_torchs_and_scipys() -> None:
    root = torch.randn(6, 2, 3, 3, dtype=torch.double)
    values = root @ root.mT + 0.1 * torch.eye(3, dtype=torch.double)
    ours = Wishart(DF, V).log_prob(values)
    torch.testing.assert_close(ours, twin().log_prob(values), rtol=1e-10, atol=1e-12)
    for i, j in itertools.product(range(6), range(2)):
        expected = scipy.stats.wishart(df=float(DF[j]), scale=torch.diag(V[j]).numpy()).logpdf(values[i, j].numpy())
        assert float(ours[i, j]) == pytest.approx(float(expected), rel=1e-10)


def test_log_prob_of_its_own_draws() -> None:
    draws = Wishart(DF, V).rsample(torch.Size((5,)))
    torch.testing.assert_close(Wishart(DF, V).log_prob(draws), twin().log_prob(draws.clone()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("df", [3.0, 5.5, 24.0])
def test_sampled_moments(df: float) -> None:
    draws = Wishart(torch.full((2,), df, dtype=torch.double), V).rsample(torch.Size((20_000,)))
    mean = torch.diag_embed(df * V)
    assert_mean(draws, mean)
    variance = df * (torch.diag_embed(V**2) + V.unsqueeze(-1) * V.unsqueeze(-2))
    assert_mean((draws - mean).square(), variance)
    log_determinants = 2 * cholesky_factor(draws).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    # E ln|Sigma| = psi_r(nu / 2) + r ln 2 + ln|V|
    digammas = sum(torch.digamma(torch.tensor((df - i) / 2)).item() for i in range(3))
    assert_mean(log_determinants, digammas + 3 * math.log(2) + V.log().sum(-1))


def test_a_diagonal_covariance_is_told_apart() -> None:
    draws = Wishart(DF, V).rsample(torch.Size((5_000,)))
    assert deviation(draws[..., 1, 0].square(), 0.0).min() > 8


def test_the_factor_travels_with_the_draw() -> None:
    draw = Wishart(DF, V).rsample(torch.Size((4,)))
    factor = cholesky_factor(draw)
    assert cholesky_factor(draw) is factor
    torch.testing.assert_close(factor, torch.linalg.cholesky(draw), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("change", [torch.clone, copy.deepcopy, lambda draw: draw.mul_(2.0), lambda draw: draw + 0.0])
def test_copied_and_changed_values_are_decomposed(change: Any) -> None:
    draw = Wishart(DF, V).rsample().detach_() if change is copy.deepcopy else Wishart(DF, V).rsample()
    before = cholesky_factor(draw)
    changed = change(draw)
    factor = cholesky_factor(changed)
    assert factor is not before
    torch.testing.assert_close(factor @ factor.mT, changed)


def test_a_draw_in_inference_mode() -> None:
    with torch.inference_mode():
        draw = Wishart(DF, V).rsample()
        torch.testing.assert_close(cholesky_factor(draw), torch.linalg.cholesky(draw))


def test_not_positive_definite() -> None:
    bad = torch.diag_embed(torch.tensor([[1.0, -1.0, 2.0]]))
    with pytest.raises(DistributionError, match=r"not positive definite.*Condition Sigma on symmetric"):
        cholesky_factor(bad)
    with pytest.raises(ValueError, match="not positive definite"):
        Wishart(torch.tensor([5.0]), torch.ones(1, 3)).log_prob(bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_invalid_scale(bad: float) -> None:
    v = V.clone()
    v[1, 2] = bad
    with pytest.raises(DistributionError, match=r"Wishart: scale_diagonal must be positive and finite; got"):
        Wishart(DF, v)


@pytest.mark.parametrize("bad", [2.9, math.nan, math.inf])
def test_invalid_degrees_of_freedom(bad: float) -> None:
    with pytest.raises(DistributionError, match=r"Wishart: df must be at least the rank 3 and finite; got"):
        Wishart(torch.tensor([4.0, bad]), V.float())


def test_validation_can_be_left_out() -> None:
    assert Wishart(torch.tensor([2.0]), V[:1].float(), validate_args=False).rank == 3


def test_shapes_and_expand() -> None:
    q = Wishart(DF, V)
    assert (q.batch_shape, q.event_shape, q.rank) == ((2,), (3, 3), 3)
    wide = q.expand((5, 2))
    assert (wide.batch_shape, wide.event_shape) == ((5, 2), (3, 3))
    draw = wide.rsample(torch.Size((7,)))
    assert draw.shape == (7, 5, 2, 3, 3)
    assert wide.log_prob(draw).shape == (7, 5, 2)
    assert kl_divergence(wide, wide).shape == (5, 2)
    torch.testing.assert_close(wide.mean, q.mean.expand(5, 2, 3, 3))
    assert draw.flatten(0, 1)[:, 0].std(0).min() > 0  # expanded entries are drawn independently


def test_draws_at_the_smallest_degrees_of_freedom_are_finite() -> None:
    # nu = rank: the last diagonal entry of the factor is a chi(1), as close to 0 as it likes.
    q = Wishart(torch.full((1,), 4.0), torch.full((1, 4), 1e-3))
    draws = q.rsample(torch.Size((100_000,)))
    factor = cholesky_factor(draws)
    assert torch.isfinite(factor).all()
    assert torch.isfinite(factor.diagonal(dim1=-2, dim2=-1).log()).all()
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert torch.isfinite(q.log_prob(draws)).all()


def test_autocast_changes_nothing() -> None:
    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        q, p = Wishart(DF.float(), V.float()), Wishart(DF.float() + 1, torch.ones(2, 3))
        draw = q.rsample()
        return draw, cholesky_factor(draw), q.log_prob(draw), q.log_prob(draw.clone()), kl_divergence(q, p)

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        inside = run()
    assert [value.dtype for value in inside] == [torch.float32] * 5
    assert all(torch.equal(first, second) for first, second in zip(plain, inside, strict=True))


def test_gradients_reach_the_scale() -> None:
    v = V.clone().requires_grad_()
    torch.manual_seed(0)
    draw = Wishart(DF, v).rsample()
    (gradient,) = torch.autograd.grad(draw.diagonal(dim1=-2, dim2=-1).sum(), v)
    # Sigma_ii is proportional to v_i.
    torch.testing.assert_close(gradient, draw.diagonal(dim1=-2, dim2=-1) / V)


def test_another_scale_of_the_same_family_draws_the_same() -> None:
    base, v = Wishart(DF, V), V.flip(0)
    shared = base.with_scale(v)
    assert shared.df is base.df
    torch.manual_seed(0)
    expected = Wishart(DF, v).rsample((4,))
    torch.manual_seed(0)
    assert torch.equal(shared.rsample((4,)), expected)
    assert not torch.equal(base.rsample((4,)), expected)


def test_draws_equal_bartletts_written_out() -> None:
    torch.manual_seed(0)
    draw = Wishart(DF, V).rsample((5,))
    torch.manual_seed(0)
    chi2 = 2 * torch._standard_gamma(torch.stack([(DF - i) / 2 for i in range(3)], -1).expand(5, 2, 3))
    bartlett = torch.randn(5, 2, 3, 3, dtype=torch.double).tril(-1) + torch.diag_embed(chi2.sqrt())
    factor = torch.diag_embed(V.sqrt()) @ bartlett
    torch.testing.assert_close(draw, factor @ factor.mT, rtol=1e-12, atol=0)
