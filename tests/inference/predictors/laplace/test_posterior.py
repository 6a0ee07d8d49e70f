"""Evidence, its gradient and its maximum; the linearized predictive; both against dense matrices."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import Prediction, Predictor
from bayes_lora.inference.predictors.laplace import (
    LaplaceOptions,
    LaplacePosterior,
    LaplacePredictor,
    fit_laplace,
    held_out_nll,
    tune_prior_precision,
    tune_prior_precision_held_out,
)
from bayes_lora.inference.predictors.laplace.blocks import DiagonalBlock
from bayes_lora.inference.predictors.laplace.linears import select_linears
from bayes_lora.inference.predictors.laplace.predictive import output_gaussians, probit_logits
from bayes_lora.models import network_logits
from tests.inference.predictors.laplace.dense import (
    build_lively,
    build_pooled,
    dense_curvature,
    dense_ggn,
    dense_jacobians,
    indistinguishable_rows,
    random_rows,
    rows_of,
    softmax_hessians,
    without_labels,
)
from tests.networks import Batch

STRUCTURES = ["kfac_reduce", "kfac_expand", "diagonal"]
CASES = [LaplaceOptions(structure=structure) for structure in STRUCTURES] + [
    LaplaceOptions(max_rank=3),
    LaplaceOptions("all_and_head"),
    LaplaceOptions("last_layer"),
    LaplaceOptions("last_layer", "diagonal"),
]


def name_of(options: LaplaceOptions) -> str:
    return f"{options.parameters}, {options.structure}, {options.max_rank}"


def fitted(batch: Batch, options: LaplaceOptions | None = None) -> tuple[torch.nn.Module, LaplacePosterior]:
    network = build_lively()
    return network, fit_laplace(network, [batch], options)


def dense_covariance(posterior: LaplacePosterior, jacobians: list[Tensor], precision: float) -> Tensor:
    """J S J' with a dense inverse of each block, (example, class, class)."""
    total = torch.zeros(1, dtype=torch.float64)
    for block, jacobian in zip(posterior.blocks.values(), jacobians, strict=True):
        curvature = dense_curvature(block)
        inverse = torch.linalg.inv(curvature + precision * torch.eye(len(curvature), dtype=torch.float64))
        total = total + torch.einsum("ncp,pq,ndq->ncd", jacobian.flatten(2), inverse, jacobian.flatten(2))
    return total


def dense_evidence(network: torch.nn.Module, posterior: LaplacePosterior, batch: Batch, precision: float) -> float:
    """The definition: ln p(D | theta*) + ln N(theta*; 0, I / lambda) - 1/2 ln|(H + lambda I) / (2 pi)|."""
    with torch.no_grad():
        logits = network_logits(network, without_labels(batch))
    likelihood = torch.distributions.Categorical(logits=logits).log_prob(batch["labels"]).sum()
    prior = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), precision**-0.5)
    linears = select_linears(network, posterior.options.parameters)
    theta = torch.cat([parameter.detach().flatten() for linear in linears for parameter in linear.parameters()])
    curvature = torch.block_diag(*(dense_curvature(block) for block in posterior.blocks.values()))
    assert len(theta) == len(curvature) == posterior.num_parameters
    hessian = curvature + precision * torch.eye(len(curvature), dtype=torch.float64)
    determinant = torch.linalg.slogdet(hessian / (2 * math.pi)).logabsdet
    return float(likelihood + prior.log_prob(theta).sum() - determinant / 2)


@pytest.mark.parametrize("options", CASES, ids=name_of)
@pytest.mark.parametrize("precision", [1e-2, 1.0, 30.0])
def test_evidence_is_the_dense_one(batch: Batch, options: LaplaceOptions, precision: float) -> None:
    network, posterior = fitted(batch, options)
    found = posterior.with_prior_precision(precision).log_marginal_likelihood()
    assert float(found) == pytest.approx(dense_evidence(network, posterior, batch, precision), rel=1e-10)


class WrongSign(DiagonalBlock):
    """A block whose log-determinant has the wrong sign."""

    def log_determinant(self, prior_precision: Tensor) -> Tensor:
        return -super().log_determinant(prior_precision)


def test_a_determinant_of_the_wrong_sign_is_seen(batch: Batch) -> None:
    network, posterior = fitted(batch, LaplaceOptions(structure="diagonal"))
    blocks = {name: WrongSign(block.curvature) for name, block in posterior.blocks.items()}  # type: ignore[attr-defined]
    wrong = replace(posterior, blocks=blocks, prior_precision=0.5)
    right = dense_evidence(network, posterior, batch, 0.5)
    assert abs(float(wrong.log_marginal_likelihood()) - right) > 1.0


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_gradient_of_the_evidence_is_that_of_finite_differences(batch: Batch, options: LaplaceOptions) -> None:
    _, posterior = fitted(batch, options)
    for value in (-3.0, 0.0, 4.0):
        u = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(posterior.log_marginal_likelihood(u.exp()), u)
        step = 1e-4
        ahead, behind = (posterior.log_marginal_likelihood((u.detach() + s).exp()) for s in (step, -step))
        assert float(gradient) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_tuned_precision_maximizes_the_evidence(batch: Batch, options: LaplaceOptions) -> None:
    _, posterior = fitted(batch, options)
    tuned = tune_prior_precision(posterior)
    best = tuned.log_marginal_likelihood()
    for factor in (0.01, 0.9, 1.1, 100.0):
        assert best > tuned.with_prior_precision(tuned.prior_precision * factor).log_marginal_likelihood()
    # MacKay's fixed point: lambda |theta|^2 is the number of effective parameters.
    eigenvalues = torch.cat([torch.linalg.eigvalsh(dense_curvature(block)) for block in posterior.blocks.values()])
    effective = float((eigenvalues / (eigenvalues + tuned.prior_precision)).sum())
    assert tuned.prior_precision * sum(tuned.squared_norms.values()) == pytest.approx(effective, rel=1e-8)


def test_a_network_without_curvature_has_no_best_precision(batch: Batch) -> None:
    _, posterior = fitted(batch, LaplaceOptions(structure="diagonal"))
    flat = replace(posterior, blocks={"a": DiagonalBlock(torch.zeros(2, 3, dtype=torch.float64))})
    with pytest.raises(ConfigurationError, match=r"no maximum .*posterior\.with_prior_precision\(1\.0\)"):
        tune_prior_precision(flat)


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_output_covariance_is_the_dense_one(batch: Batch, options: LaplaceOptions) -> None:
    network, posterior = fitted(batch, options)
    linears = select_linears(network, options.parameters)
    jacobians = dense_jacobians(network, linears, batch)
    precisions = [1e-3, 0.7, 50.0]
    mean, covariances = output_gaussians(network, posterior, linears, without_labels(batch), precisions)
    with torch.no_grad():
        torch.testing.assert_close(mean, network_logits(network, without_labels(batch)), rtol=0, atol=0)
    for covariance, precision in zip(covariances, precisions, strict=True):
        expected = dense_covariance(posterior, jacobians, precision)
        torch.testing.assert_close(covariance, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("options", CASES[:4], ids=name_of)
def test_posterior_covariance_is_the_inverse_of_the_precision(batch: Batch, options: LaplaceOptions) -> None:
    _, posterior = fitted(batch, options)
    for block in posterior.blocks.values():
        size = block.shape[0] * block.shape[1]
        unit = torch.eye(size, dtype=torch.float64)
        covariance = block.output_covariance(unit.reshape(1, size, *block.shape), 0.3)[0]
        torch.testing.assert_close(covariance @ (dense_curvature(block) + 0.3 * unit), unit, rtol=0, atol=1e-10)


def test_predictive_where_kfac_is_exact_is_that_of_the_ggn() -> None:
    network = build_pooled()
    train, test = indistinguishable_rows(network, 4, 3), random_rows(6, 3)
    options = LaplaceOptions("all_and_head")
    posterior = fit_laplace(network, [train], options)
    linears = select_linears(network, "all_and_head")
    expected = torch.zeros(1, dtype=torch.float64)
    for at_train, at_test in zip(
        dense_jacobians(network, linears, train), dense_jacobians(network, linears, test), strict=True
    ):
        ggn = dense_ggn(at_train, softmax_hessians(network, train))
        inverse = torch.linalg.inv(ggn + 2.0 * torch.eye(len(ggn), dtype=torch.float64))
        expected = expected + torch.einsum("ncp,pq,ndq->ncd", at_test.flatten(2), inverse, at_test.flatten(2))
    _, (covariance,) = output_gaussians(network, posterior, linears, without_labels(test), [2.0])
    torch.testing.assert_close(covariance, expected, rtol=1e-10, atol=1e-12)


def test_low_rank_predictive_is_wider_and_converges(batch: Batch) -> None:
    network, posterior = fitted(batch)
    linears = select_linears(network, "all")
    inputs = without_labels(batch)
    _, (full,) = output_gaussians(network, posterior, linears, inputs, [0.1])
    excess = []
    for rank in (1, 2, 4, 15):
        cut = fit_laplace(network, [batch], LaplaceOptions(max_rank=rank))
        _, (covariance,) = output_gaussians(network, cut, linears, inputs, [0.1])
        assert torch.linalg.eigvalsh(covariance - full).min() > -1e-9 * float(full.abs().max())
        excess.append(float((covariance - full).norm() / full.norm()))
    assert excess[0] > excess[1] > excess[2]
    assert excess[0] > 1e-2
    assert excess[3] < 1e-8


def test_draws_have_the_moments_of_the_output_gaussian(batch: Batch) -> None:
    network, posterior = fitted(batch)
    predictor: Predictor = LaplacePredictor(network, posterior)
    num = 4000
    logits = predictor([batch], num_samples=num, seed=1).logits
    linears = select_linears(network, "all")
    mean, (covariance,) = output_gaussians(network, posterior, linears, without_labels(batch), [1.0])
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    # 5 standard errors: a failure in a million per entry, of which there are 60.
    assert ((logits.mean(0) - mean).abs() < 5 * (variance / num).sqrt()).all()
    centred = logits - mean
    found = torch.einsum("snc,snd->ncd", centred, centred) / num
    spread = ((variance.unsqueeze(-1) * variance.unsqueeze(-2) + covariance.square()) / num).sqrt()
    assert ((found - covariance).abs() < 5 * spread).all()


def test_draws_depend_on_seed_sample_and_example_only(batch: Batch) -> None:
    predictor = LaplacePredictor(*fitted(batch))
    state = torch.get_rng_state()
    whole = predictor([batch], num_samples=20, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    parts = predictor([rows_of(batch, 0, 1), rows_of(batch, 2), rows_of(batch, 3, 4)], num_samples=8, seed=2)
    torch.testing.assert_close(parts.logits, whole.logits[:8], rtol=1e-9, atol=1e-11)
    assert torch.equal(predictor([batch], num_samples=20, seed=2).logits, whole.logits)
    assert not torch.allclose(predictor([batch], num_samples=20, seed=3).logits, whole.logits, atol=1e-3)
    assert whole.labels is not None
    assert torch.equal(whole.labels, batch["labels"])


@pytest.mark.parametrize("link", ["monte_carlo", "probit"])
@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_infinite_prior_precision_is_the_point_estimate(batch: Batch, options: LaplaceOptions, link: str) -> None:
    network, posterior = fitted(batch, options)
    prediction = LaplacePredictor(network, posterior.with_prior_precision(1e24), link)([batch], num_samples=3)
    with torch.no_grad():
        expected = network_logits(network, without_labels(batch)).softmax(-1)
    torch.testing.assert_close(prediction.probs, expected.expand_as(prediction.probs), rtol=1e-9, atol=1e-10)
    assert len(prediction.logits) == (1 if link == "probit" else 3)


def test_probit_of_two_classes_is_that_of_the_difference() -> None:
    mean = torch.tensor([[0.3, -1.1], [2.0, 2.0]], dtype=torch.float64)
    root = torch.randn(2, 2, 2, dtype=torch.float64)
    covariance = root @ root.mT
    variance = covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1]
    expected = torch.sigmoid((mean[:, 0] - mean[:, 1]) / (1 + math.pi * variance / 8).sqrt())
    torch.testing.assert_close(probit_logits(mean, covariance).softmax(-1)[:, 0], expected, rtol=1e-12, atol=0)


def test_probit_sees_differences_of_logits_only() -> None:
    mean, root = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, 3, dtype=torch.float64)
    covariance = root @ root.mT
    shifted = probit_logits(mean + 2, covariance + 7)
    torch.testing.assert_close(shifted, probit_logits(mean, covariance), rtol=1e-12, atol=1e-12)


def test_probit_is_near_the_integral() -> None:
    """E sigmoid(z) for z ~ N(m, v) by Gauss-Hermite quadrature; the approximation is known to be good to 0.02."""
    means = torch.linspace(-6, 6, 25, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite.hermgauss(200))
    for variance in (0.0, 0.5, 3.0, 20.0):
        exact = (weights * torch.sigmoid(means.unsqueeze(-1) + math.sqrt(2 * variance) * nodes)).sum(-1) / math.pi**0.5
        mean = torch.stack([means, torch.zeros_like(means)], dim=-1)
        covariance = torch.diag(torch.tensor([variance, 0.0], dtype=torch.float64)).expand(25, 2, 2)
        error = (probit_logits(mean, covariance).softmax(-1)[:, 0] - exact).abs().max()
        assert error < (0.02 if variance else 1e-12)
        assert variance < 3 or error < 0.2 * (torch.sigmoid(means) - exact).abs().max()


@pytest.mark.parametrize("link", ["monte_carlo", "probit"])
def test_held_out_nll_is_that_of_each_precision_alone(batch: Batch, link: str) -> None:
    network, posterior = fitted(rows_of(batch, 0, 1, 2))
    held_out = rows_of(batch, 3, 4)
    precisions = [0.01, 0.3, 10.0, 1000.0]
    found = held_out_nll(network, posterior, [held_out], precisions, link=link, num_samples=9, seed=4)
    for nll, precision in zip(found, precisions, strict=True):
        predictor = LaplacePredictor(network, posterior.with_prior_precision(precision), link)
        prediction: Prediction = predictor([held_out], num_samples=9, seed=4)
        right = prediction.mean_probs.gather(-1, held_out["labels"].unsqueeze(-1))
        assert float(nll) == pytest.approx(float(-right.log().mean()), rel=1e-10)
    tuned = tune_prior_precision_held_out(network, posterior, [held_out], precisions, link=link, num_samples=9, seed=4)
    assert tuned.prior_precision == precisions[int(found.argmin())]
    assert len(set(found.tolist())) == 4


def test_held_out_rows_without_labels_are_refused(batch: Batch) -> None:
    network, posterior = fitted(batch)
    with pytest.raises(DataError, match="the held-out rows have no labels"):
        held_out_nll(network, posterior, [without_labels(batch)])
    with pytest.raises(ConfigurationError, match="precisions is empty"):
        held_out_nll(network, posterior, [batch], [])
    with pytest.raises(ConfigurationError, match=r"prior precision=-1\.0 must be positive"):
        held_out_nll(network, posterior, [batch], [-1.0])


def test_float32_is_near_float64(batch: Batch) -> None:
    network, posterior = fitted(batch, LaplaceOptions("all_and_head"))
    single = build_lively().float()
    other = fit_laplace(single, [batch], LaplaceOptions("all_and_head"))
    expected = float(posterior.log_marginal_likelihood())
    assert float(other.log_marginal_likelihood()) == pytest.approx(expected, rel=1e-5)
    first = LaplacePredictor(network, posterior)([batch], num_samples=4).logits
    second = LaplacePredictor(single, other)([batch], num_samples=4).logits
    torch.testing.assert_close(second.double(), first, rtol=1e-3, atol=1e-4)
