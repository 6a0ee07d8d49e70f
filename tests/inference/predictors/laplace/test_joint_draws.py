"""Draws of the linearized network's parameters, which all rows share: their covariance against dense matrices."""

import math
from dataclasses import replace

import pytest
import torch

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.diagnostics import check_accuracy
from bayes_lora.inference.predictors.laplace import LaplaceOptions, LaplacePosterior, LaplacePredictor, fit_laplace
from bayes_lora.inference.predictors.laplace.linears import select_linears
from bayes_lora.inference.predictors.laplace.predictive import LINKS
from bayes_lora.models import network_logits
from tests.inference.predictors.laplace.dense import (
    build_lively,
    dense_curvature,
    dense_jacobians,
    rows_of,
    without_labels,
)
from tests.networks import Batch

CASES = [
    LaplaceOptions(),
    LaplaceOptions(max_rank=3),
    LaplaceOptions("all_and_head", "diagonal"),
    LaplaceOptions("last_layer"),
]


def fitted(batch: Batch, options: LaplaceOptions | None = None) -> tuple[torch.nn.Module, LaplacePosterior]:
    network = build_lively()
    return network, fit_laplace(network, [batch], options)


def name_of(options: LaplaceOptions) -> str:
    return f"{options.parameters}, {options.structure}, {options.max_rank}"


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_draws_of_parameters_have_the_inverse_of_the_precision(batch: Batch, options: LaplaceOptions) -> None:
    """The root applied to each unit vector is a matrix, and its square is the covariance."""
    _, posterior = fitted(batch, options)
    for block in posterior.blocks.values():
        unit = torch.eye(math.prod(block.shape), dtype=torch.float64)
        root = block.draw(unit.unflatten(-1, block.shape), 0.7).flatten(1)
        torch.testing.assert_close(root @ root.mT @ (dense_curvature(block) + 0.7 * unit), unit, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_joint_draws_are_those_of_the_linearized_network(batch: Batch, options: LaplaceOptions) -> None:
    """Covariances between rows too: J S J' over all rows and classes at once."""
    network, posterior = fitted(batch, options)
    posterior = replace(posterior, prior_precision=2.0)
    expected = torch.zeros(1, dtype=torch.float64)
    jacobians = dense_jacobians(network, select_linears(network, options.parameters), batch)
    for jacobian, block in zip(jacobians, posterior.blocks.values(), strict=True):
        flat = jacobian.flatten(0, 1).flatten(1)
        precision = dense_curvature(block) + 2.0 * torch.eye(flat.shape[1], dtype=torch.float64)
        expected = expected + flat @ torch.linalg.inv(precision) @ flat.mT
    num_draws = 6_000
    joint, apart = (
        LaplacePredictor(network, posterior, link)([batch], num_samples=num_draws).logits.flatten(1)
        for link in ("joint", "monte_carlo")
    )
    variance = expected.diagonal()
    error = ((expected.square() + variance.outer(variance)) / num_draws).sqrt()  # of a covariance of Gaussians
    assert ((joint.T.cov() - expected).abs() < 5 * error + 1e-9).all()
    mean = network_logits(network, without_labels(batch)).detach().flatten()
    assert ((joint.mean(0) - mean).abs() < 5 * (variance / num_draws).sqrt() + 1e-6).all()
    # Which rows drawn one by one do not have.
    num_classes = len(expected) // len(batch["labels"])
    between = slice(num_classes), slice(num_classes, 2 * num_classes)
    assert (expected[between].abs() > 10 * error[between]).any()
    assert (apart.T.cov()[between].abs() < 5 * error[between]).all()


def test_joint_draws_depend_on_seed_and_sample_only(batch: Batch) -> None:
    network, posterior = fitted(batch)
    predictor = LaplacePredictor(network, posterior, "joint")
    whole = predictor([batch], num_samples=4, seed=1)
    first, *others = range(len(batch["labels"]))
    parts = predictor([rows_of(batch, first), rows_of(batch, *others)], num_samples=4, seed=1)
    torch.testing.assert_close(parts.logits, whole.logits)
    torch.testing.assert_close(predictor([batch], num_samples=8, seed=1).logits[:4], whole.logits)
    assert not torch.allclose(predictor([batch], num_samples=4, seed=2).logits, whole.logits)
    both = predictor.at_precisions([batch], [posterior.prior_precision, 50.0], num_samples=4, seed=1)
    assert torch.equal(both[0].logits, whole.logits)


def test_predictions_say_what_their_draws_are_of(batch: Batch) -> None:
    network, posterior = fitted(batch)
    found = {link: LaplacePredictor(network, posterior, link)([batch], num_samples=30) for link in LINKS}
    assert {link: (of.kl_temperature, of.joint) for link, of in found.items()} == {
        "monte_carlo": (1.0, False),
        "joint": (1.0, True),
        "probit": (None, True),
    }
    with pytest.raises(ConfigurationError, match=r"draws of each row are independent .* link='joint'"):
        check_accuracy(found["monte_carlo"])
    check_accuracy(found["joint"])


@pytest.mark.parametrize(("num_samples", "size"), [(6, 2), (12, 4)])
@pytest.mark.parametrize("link", ["monte_carlo", "joint"])
def test_a_block_is_centred_at_the_logits_at_the_mean(batch: Batch, link: str, num_samples: int, size: int) -> None:
    """Whose mean, in logits, is exact; the first draws are those of independent ones."""
    network, posterior = fitted(batch)
    designed = LaplacePredictor(network, posterior, link)([batch], num_samples=num_samples)
    independent = LaplacePredictor(network, posterior, link, "independent")([batch], num_samples=num_samples)
    assert (designed.block_size, independent.block_size) == (size, 1)
    mean = network_logits(network, without_labels(batch)).detach().double()
    torch.testing.assert_close(
        designed.logits.double().unflatten(0, (3, size)).mean(1), mean.expand(3, -1, -1), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(designed.logits[::size], independent.logits[::size])
    spreads = designed.logits.std(), independent.logits.std()
    assert 0.5 < spreads[0] / spreads[1] < 2
    assert LaplacePredictor(network, posterior, "probit")([batch]).block_size == 1
    with pytest.raises(ConfigurationError, match="draws='sobol'"):
        LaplacePredictor(network, posterior, link, "sobol")  # type: ignore[arg-type]
