"""A network that is linear in the one entry of its one LoRA-A, under every likelihood, with what scipy says of it.

f(x; a) = (c + a d) x,  c = V W0,  d = V B: all else is known. So densities, scores and, on a grid of a, the posterior
and its predictive can be written down without this library.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.special import expit, log_expit, log_softmax, softmax

import bayes_lora as bl
from bayes_lora.experiments.ground_truth.problems import Problem, regression_problem
from bayes_lora.inference.guides.adapter_guide import AdapterGuide
from bayes_lora.inference.guides.autoguides import JointDraw
from bayes_lora.models import (
    BayesianLoRA,
    Classification,
    GaussianRegression,
    Likelihood,
    MultiLabel,
    Ordinal,
    StudentTRegression,
    TokenClassification,
)

Array = Any  # of numpy, in double precision
NUM_ROWS, NUM_TEST, NUM_TOKENS, PRIOR_SCALE = 12, 8, 4, 1.5
CENTRE, UNIT, NOISE, DEGREES = 0.4, 1.6, 0.7, 3.5
THRESHOLDS = np.array([-1.1, 0.2, 0.9])


@dataclass(frozen=True)
class Law:
    """ln p(y | f) and its derivatives, written with scipy.

    Attributes:
        build: the likelihood that it is the law of.
        num_outputs: of the network.
        labels: draws labels of logits (row, ..., output).
        log_density: ln p of every row, (..., row), of f (..., row, output) and labels.
        score: d ln p / d f, of the shape of f.
        of_parameters: sums over rows of d ln p / d theta, by the likelihood's parameter, of f and labels.
        probs: class probabilities of f, where there are classes.
    """

    build: Callable[[], Likelihood]
    num_outputs: int
    labels: Callable[[np.random.Generator, Array], Array]
    log_density: Callable[[Array, Array], Array]
    score: Callable[[Array, Array], Array]
    of_parameters: Callable[[Array, Array], dict[str, Array]] = lambda f, y: {}
    probs: Callable[[Array], Array] | None = None


def _classes(generator: np.random.Generator, f: Array) -> Array:
    """A class for each row, or token, with the probabilities of a softmax."""
    return (softmax(f, -1).cumsum(-1) < generator.random(f.shape[:-1])[..., None]).sum(-1)


def _of_class(f: Array, y: Array) -> Array:
    chosen = np.broadcast_to(np.maximum(y, 0)[..., None], (*f.shape[:-1], 1))
    return np.take_along_axis(log_softmax(f, -1), chosen, -1)[..., 0]


def _class_score(f: Array, y: Array) -> Array:
    return np.eye(f.shape[-1])[np.maximum(y, 0)] - softmax(f, -1)


def _of_grade(f: Array, y: Array) -> tuple[Array, Array]:
    """P(Y <= y) and P(Y <= y - 1) of f (..., row, 1)."""
    bounds = np.concatenate([[-np.inf], THRESHOLDS, [np.inf]])
    return expit(bounds[y + 1] - f[..., 0]), expit(bounds[y] - f[..., 0])


def _grade_parameters(f: Array, y: Array) -> dict[str, Array]:
    """theta_k = first + sum_{j <= k} exp(log_steps_j); d ln p / d theta_k has the density of the logistic at it."""
    high, low = _of_grade(f, y)
    of_thresholds = [
        ((y == k) * high * (1 - high) - (y == k + 1) * low * (1 - low)) / (high - low) for k in range(len(THRESHOLDS))
    ]
    sums = np.array([of.sum() for of in of_thresholds])
    return {
        "first": sums.sum(),
        "log_steps": np.array([sums[k + 1 :].sum() for k in range(len(sums) - 1)]) * np.diff(THRESHOLDS),
    }


def _ordinal() -> Ordinal:
    likelihood = Ordinal(len(THRESHOLDS) + 1).double()
    likelihood.first.data.fill_(THRESHOLDS[0])
    likelihood.log_steps.data.copy_(torch.from_numpy(np.log(np.diff(THRESHOLDS))))
    return likelihood


def _in_units(likelihood: GaussianRegression) -> GaussianRegression:
    """Learned noise of NOISE, in labels of another centre and unit than 0 and 1."""
    likelihood.double()
    likelihood.centre.fill_(CENTRE)
    likelihood.unit.fill_(UNIT)
    likelihood.log_scale.data.fill_(np.log(NOISE / UNIT))
    return likelihood


def _error(f: Array, y: Array) -> Array:
    return (y - CENTRE - UNIT * f) / NOISE


def _t_weight(f: Array, y: Array) -> Array:
    return (DEGREES + 1) / (DEGREES + _error(f, y) ** 2)


LAWS: dict[str, Law] = {
    "classification": Law(Classification, 3, _classes, _of_class, _class_score, probs=lambda f: softmax(f, -1)),
    "known noise": Law(
        lambda: GaussianRegression(NOISE),
        2,
        lambda generator, f: f + NOISE * generator.standard_normal(f.shape),
        lambda f, y: stats.norm.logpdf(y, f, NOISE).sum(-1),
        lambda f, y: (y - f) / NOISE**2,
    ),
    "learned noise": Law(
        lambda: _in_units(GaussianRegression(learned=True, num_outputs=2)),
        2,
        lambda generator, f: CENTRE + UNIT * f + NOISE * generator.standard_normal(f.shape),
        lambda f, y: (stats.norm.logpdf(_error(f, y)) - np.log(NOISE)).sum(-1),
        lambda f, y: UNIT * _error(f, y) / NOISE,
        lambda f, y: {"log_scale": (_error(f, y) ** 2 - 1).sum(0)},
    ),
    "Student's t": Law(
        lambda: _in_units(StudentTRegression(1.0, DEGREES, learned=True, num_outputs=2)),
        2,
        lambda generator, f: CENTRE + UNIT * f + NOISE * generator.standard_t(DEGREES, f.shape),
        lambda f, y: (stats.t.logpdf(_error(f, y), DEGREES) - np.log(NOISE)).sum(-1),
        lambda f, y: UNIT * _t_weight(f, y) * _error(f, y) / NOISE,
        lambda f, y: {"log_scale": (_t_weight(f, y) * _error(f, y) ** 2 - 1).sum(0)},
    ),
    "multi-label": Law(
        MultiLabel,
        3,
        lambda generator, f: (generator.random(f.shape) < expit(f)).astype(int),
        lambda f, y: log_expit(np.where(y == 1, f, -f)).sum(-1),
        lambda f, y: y - expit(f),
        probs=expit,
    ),
    "ordinal": Law(
        _ordinal,
        1,
        lambda generator, f: (THRESHOLDS - f < generator.logistic(size=f.shape)).sum(-1),
        lambda f, y: np.log(np.maximum(np.subtract(*_of_grade(f, y)), 1e-300)),  # far from where the posterior is
        lambda f, y: (np.add(*_of_grade(f, y)) - 1)[..., None],
        _grade_parameters,
        probs=lambda f: np.diff(expit(np.concatenate([[-np.inf], THRESHOLDS, [np.inf]]) - f), axis=-1),
    ),
    "tokens": Law(
        lambda: TokenClassification(("O", "B-x", "I-x")),
        3,
        lambda generator, f: np.where(generator.random(f.shape[:-1]) < 0.3, -100, _classes(generator, f)),
        lambda f, y: (_of_class(f, y) * (y >= 0)).sum(-1),
        lambda f, y: _class_score(f, y) * (y >= 0)[..., None],
        probs=lambda f: softmax(f, -1),
    ),
}


@dataclass(frozen=True)
class LinearCase:
    """Rows for training and rows held out, with the prior N(0, PRIOR_SCALE^2) of a."""

    law: Law
    problem: Problem
    labels: Array
    test_labels: Array

    @cached_property
    def model(self) -> BayesianLoRA:
        """Of objective "elbo", with the likelihood where `Law` has it."""
        likelihood = self.law.build().double()
        count = likelihood.num_observations(torch.from_numpy(self.labels))
        config = bl.MonteCLoRAConfig(
            objective="elbo", num_train_examples=count, prior_scale=PRIOR_SCALE, sample_scale=0.4
        )
        return BayesianLoRA(self.problem.build_network(), config, likelihood)

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        return {"inputs": self.problem.inputs, "labels": torch.from_numpy(self.labels)}

    @property
    def test_batch(self) -> dict[str, torch.Tensor]:
        return {"inputs": self.problem.test_inputs, "labels": torch.from_numpy(self.test_labels)}

    @property
    def slope(self) -> Array:
        """d, (output,)."""
        return (self.problem.head @ self.problem.expand).numpy()[:, 0]

    def logits(self, a: Array, inputs: torch.Tensor) -> Array:
        """f, (..., row, [token,] output), of a (...)."""
        fixed = (self.problem.head @ self.problem.base).numpy()[:, 0]
        of_a = fixed + np.asarray(a)[..., None] * self.slope
        return of_a[(..., *[None] * (inputs.dim() - 1), slice(None))] * inputs.numpy()

    def log_joint(self, a: Array) -> Array:
        """ln p(y, a) of the training rows, of a (...)."""
        of_rows = self.law.log_density(self.logits(a, self.problem.inputs), self.labels)
        return of_rows.sum(-1) + stats.norm.logpdf(a, scale=PRIOR_SCALE)

    @cached_property
    def grid(self) -> tuple[Array, Array]:
        """Values of a, and the posterior's probabilities of them: rectangles, of a density that is 0 at both ends."""
        a = np.linspace(-8 * PRIOR_SCALE, 8 * PRIOR_SCALE, 20_001)
        return a, softmax(self.log_joint(a))

    def expected(self, of: Callable[[Array], Array]) -> Array:
        """E of(f(test rows; a)) under the posterior."""
        a, weights = self.grid
        kept = weights > 1e-14
        return np.tensordot(weights[kept], of(self.logits(a[kept], self.problem.test_inputs)), 1)


def linear_case(name: str) -> LinearCase:
    """Data drawn from the model itself."""
    law = LAWS[name]
    problem = regression_problem(
        3, num_examples=NUM_ROWS, num_test=NUM_TEST, in_features=1, rank=1, width=1, num_outputs=law.num_outputs
    )
    tokens = (NUM_TOKENS,) if name == "tokens" else ()
    generator = np.random.default_rng(4)
    inputs, test_inputs = (torch.from_numpy(generator.standard_normal((n, *tokens, 1))) for n in (NUM_ROWS, NUM_TEST))
    problem = replace(problem, inputs=inputs, test_inputs=test_inputs)
    case = LinearCase(law, problem, np.empty(0), np.empty(0))
    labels, test_labels = (law.labels(generator, case.logits(1.3, rows)) for rows in (inputs, test_inputs))
    return replace(case, labels=labels, test_labels=test_labels)


class QuadratureGuide(AdapterGuide):
    """Draws of a from the posterior of a case, by its distribution function on the grid."""

    def __init__(self, case: LinearCase) -> None:
        super().__init__(case.model)
        values, weights = case.grid
        self.values, self.cumulative = torch.from_numpy(values), torch.from_numpy(weights.cumsum())

    def columns(self) -> dict[str, JointDraw]:
        place = torch.searchsorted(self.cumulative, torch.rand(1, dtype=torch.double)).clamp_max(len(self.values) - 1)
        draw = self.values[place].view(1, 1, 1)
        site = self.model.sites.column_site(self.model.sites.groups[0])
        return {site: JointDraw(draw, torch.zeros(1, 1, dtype=torch.double), event_dim=1)}
