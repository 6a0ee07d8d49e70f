"""VBLL: its bound against quadrature, its KL against torch's, its maximum, its draws, its file, and refusals."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from bayes_lora.errors import ConfigurationError, DataError, NotConvergedError, PosteriorFileError
from bayes_lora.inference import PointEstimate, VBLLOptions, VBLLPosterior, VBLLPredictor, fit_vbll
from bayes_lora.inference.predictors.last_layer.vbll import objective
from bayes_lora.inference.predictors.outside.hidden_states import hidden_states
from tests.networks import build_network, learnable_rows, make_batch
from tests.statistics import assert_mean

Batches = list[dict[str, Tensor]]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_posterior(classes: int = 3, width: int = 4) -> VBLLPosterior:
    variance, noise = randn(classes, width + 1, seed=2).exp() / 10, randn(classes, seed=3).exp()
    return VBLLPosterior(randn(classes, width + 1, seed=1), variance, noise)


@pytest.fixture(scope="module")
def trained() -> tuple[PointEstimate, Batches]:
    rows = learnable_rows()
    batches = [{name: torch.tensor([row[name] for row in rows[i : i + 16]]) for name in rows[0]} for i in (0, 16, 32)]
    return PointEstimate(build_network(num_layers=1)), batches


@pytest.fixture(scope="module")
def posterior(trained: tuple[PointEstimate, Batches]) -> VBLLPosterior:
    return fit_vbll(*trained)


def test_the_bound_is_jensens_by_quadrature() -> None:
    """Gauss and Hermite's, of 40 points in each of three logits: E exp is exact, and E ln softmax above the bound."""
    posterior, states = random_posterior(), randn(5, 4, seed=4)
    labels = torch.tensor([0, 1, 2, 0, 1])
    mean, variance = posterior.logits(states)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    for row, label in enumerate(labels.tolist()):
        grid = [mean[row, c].item() + variance[row, c].sqrt().item() * nodes for c in range(3)]
        of_exp = sum(float(weights @ np.exp(grid[c])) for c in range(3))
        expected = mean[row, label].item() - np.log(of_exp)
        assert posterior.bound(states, labels)[row].item() == pytest.approx(expected, rel=1e-9)
        exact = 0.0
        for i, j, k in product(range(40), repeat=3):
            z = np.array([grid[0][i], grid[1][j], grid[2][k]])
            exact += weights[i] * weights[j] * weights[k] * (z[label] - np.log(np.exp(z).sum()))
        assert expected < exact < 0
    # Without variances it is the log density itself.
    sharp = replace(posterior, variance=1e-14 * posterior.variance, noise=1e-14 * posterior.noise)
    density = torch.log_softmax(mean, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(sharp.bound(states, labels), density)


def test_the_kl_is_that_of_normals() -> None:
    posterior = random_posterior()
    for prior_scale in (0.3, 1.0, 7.0):
        own = Normal(posterior.mean, posterior.variance.sqrt())
        prior = Normal(torch.zeros_like(posterior.mean), torch.full_like(posterior.mean, prior_scale**0.5))
        torch.testing.assert_close(posterior.kl(prior_scale), kl_divergence(own, prior).sum())


def test_what_is_fitted_is_a_maximum(trained: tuple[PointEstimate, Batches], posterior: VBLLPosterior) -> None:
    point, batches = trained
    states = hidden_states(point, batches)[1]
    labels = torch.cat([batch["labels"] for batch in batches])
    best = objective(posterior, states, labels, VBLLOptions())
    for seed in range(8):
        moved = VBLLPosterior(
            posterior.mean + 0.01 * randn(*posterior.mean.shape, seed=seed),
            posterior.variance * (0.01 * randn(*posterior.mean.shape, seed=seed + 10)).exp(),
            posterior.noise * (0.01 * randn(3, seed=seed + 20)).exp(),
        )
        assert objective(moved, states, labels, VBLLOptions()) < best
    again = fit_vbll(point, batches)
    assert all(torch.equal(getattr(again, part), getattr(posterior, part)) for part in ("mean", "variance", "noise"))
    # A tighter prior draws the weights together.
    tight = fit_vbll(point, batches, VBLLOptions(prior_scale=0.01))
    assert tight.mean.square().sum() < 0.5 * posterior.mean.square().sum()


def test_without_variances_it_is_the_network(trained: tuple[PointEstimate, Batches]) -> None:
    point, batches = trained
    head: Any = point.network
    linear = head.base_model.model.classifier
    mean = torch.cat([linear.weight, linear.bias.unsqueeze(1)], dim=1).detach()
    found = VBLLPredictor(point, VBLLPosterior(mean, torch.zeros_like(mean), torch.zeros(3).double()))(batches)
    torch.testing.assert_close(found.logits, point(batches).logits.expand_as(found.logits))


@pytest.mark.parametrize("draws", ["independent", None])
def test_draws_have_the_moments_of_its_logits(
    draws: Any, trained: tuple[PointEstimate, Batches], posterior: VBLLPosterior
) -> None:
    point, batches = trained
    mean, variance = posterior.logits(hidden_states(point, batches)[1])
    found = VBLLPredictor(point, posterior, draws)(batches, num_samples=2000, seed=3)
    assert found.block_size == (1 if draws else 4)
    away = found.logits - mean
    if draws:
        assert_mean(away.flatten(1), torch.zeros_like(mean).flatten())
        assert_mean(away.square().flatten(1), variance.flatten())
    else:
        assert away.unflatten(0, (-1, 4)).sum(1).abs().max() < 1e-9  # of a block it cancels
        assert_mean(away.square().unflatten(0, (-1, 4)).mean(1).flatten(1), variance.flatten())


def test_a_draw_is_the_same_in_any_batches(trained: tuple[PointEstimate, Batches], posterior: VBLLPosterior) -> None:
    point, batches = trained
    predictor = VBLLPredictor(point, posterior)
    found = predictor(batches, num_samples=8, seed=1)
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    torch.testing.assert_close(predictor([whole], num_samples=8, seed=1).logits, found.logits)
    torch.testing.assert_close(predictor(batches, num_samples=4, seed=1).logits, found.logits[:4])
    assert not torch.equal(predictor(batches, num_samples=8, seed=2).logits, found.logits)


def test_its_file(posterior: VBLLPosterior, tmp_path: Path) -> None:
    path = tmp_path / "vbll.safetensors"
    posterior.save(path)
    found = VBLLPosterior.load(path)
    assert all(torch.equal(getattr(found, part), getattr(posterior, part)) for part in ("mean", "variance", "noise"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(PosteriorFileError, match=r"vbll\.safetensors"):
        VBLLPosterior.load(path)


def test_refusals(trained: tuple[PointEstimate, Batches], posterior: VBLLPosterior) -> None:
    point, batches = trained
    with pytest.raises(NotConvergedError, match="still rising after 2 steps"):
        fit_vbll(point, batches, VBLLOptions(max_steps=2))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        VBLLPosterior(posterior.mean, posterior.variance, posterior.noise[:2])
    with pytest.raises(ConfigurationError, match="of hidden states of width 4, and the network's have 16"):
        VBLLPredictor(point, random_posterior())(batches)
    with pytest.raises(ConfigurationError, match="prior_scale=0 must be positive"):
        VBLLOptions(prior_scale=0)
    wrong = make_batch() | {"labels": torch.tensor([0, 1, 2, 3, 4])}
    with pytest.raises(DataError, match="labels run from 0 to 4, but there are 3 classes"):
        fit_vbll(point, [wrong])
