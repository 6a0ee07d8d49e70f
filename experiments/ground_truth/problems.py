"""Small low-rank problems whose posterior over LoRA-A can be had: in closed form, or by NUTS.

A two-layer network of which LoRA-A alone is unknown,

    f(x; A) = V g(W0 x + s B A x),    A_ji ~ N(0, prior_scale^2),    s = lora_alpha / rank,

with V, W0 and B known. Regression has g the identity and ``y ~ N(f, noise_scale^2 I)``: f is affine in A, and the
posterior is Gaussian. Classification has g = tanh and ``y ~ Categorical(softmax(f))``: the posterior is not.

Every problem is one draw from its own generative model: inputs, V, W0 and B first, then the true A from the prior,
then the labels. So problems of many seeds serve simulation-based calibration as they are.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import peft
import torch
from torch import Tensor

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.ground_truth.network import TwoLayer
from bayes_lora.models import BayesianLoRA, GaussianRegression

_INPUT_CORRELATION = 0.5  # between any two inputs, so that the entries of A are correlated a posteriori
_SATURATING_GAIN = 4.0  # of a classification's head, without which tanh units leave the classes all but even


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, known weights and prior of one problem; everything in float64.

    Attributes:
        inputs: (example, in_features), the training rows.
        labels: (example, output) real numbers, or (example,) classes.
        test_inputs: (test example, in_features), rows held out.
        true_a: the A that made the labels, (rank, in_features).
        base: W0, (width, in_features).
        expand: B, (width, rank).
        head: V, (output, width).
        prior_scale: standard deviation of the entries of A under the prior.
        noise_scale: standard deviation of the labels around f; None is classification.
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    true_a: Tensor
    base: Tensor
    expand: Tensor
    head: Tensor
    prior_scale: float
    noise_scale: float | None = None

    @property
    def is_regression(self) -> bool:
        return self.noise_scale is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(rank, in_features): of A."""
        return self.true_a.shape[0], self.true_a.shape[1]

    @property
    def batch(self) -> dict[str, Tensor]:
        """All training rows, as the network takes them, with labels."""
        return {"inputs": self.inputs, "labels": self.labels}

    @property
    def test_batch(self) -> dict[str, Tensor]:
        """The rows held out, without labels."""
        return {"inputs": self.test_inputs}

    def logits(self, a: Tensor, inputs: Tensor) -> Tensor:
        """f(x; A), for many A at once: the network as a function, without PEFT.

        Args:
            a: (..., rank, in_features).
            inputs: (example, in_features).

        Returns:
            (..., example, output).
        """
        hidden = inputs @ (self.base + self.expand @ a).mT
        return (hidden if self.is_regression else hidden.tanh()) @ self.head.mT

    def label_log_prob(self, logits: Tensor) -> Tensor:
        """ln p(y | logits) of the training rows, less the Gaussian's constant; (...,) for (..., example, output)."""
        if self.noise_scale is not None:
            return -((self.labels - logits) / self.noise_scale).square().sum((-2, -1)) / 2
        chosen = self.labels[:, None].expand(*logits.shape[:-1], 1)
        return logits.log_softmax(-1).gather(-1, chosen).sum((-2, -1))

    def log_likelihood(self, a: Tensor) -> Tensor:
        """ln p(y | A) of the training rows, less the Gaussian's constant; (...,) for A (..., rank, in_features)."""
        return self.label_log_prob(self.logits(a, self.inputs))

    def log_joint(self, a: Tensor) -> Tensor:
        """ln p(y, A) up to a constant, (...,) for A (..., rank, in_features).

        That of the model of objective "elbo" at temperature 1, times the number of training rows, without pi and
        Sigma, which in that objective the prior of A does not depend on.
        """
        return self.log_likelihood(a) - (a / self.prior_scale).square().sum((-2, -1)) / 2

    def build_network(self, *, dropout: float = 0.0) -> peft.PeftModel:
        """A fresh PEFT network of this problem: A is 0 and trainable, all else is known and frozen.

        Args:
            dropout: of the inputs of LoRA-A, in training mode.
        """
        rank, _ = self.shape
        with torch.random.fork_rng(devices=[]):  # every weight is replaced
            network = TwoLayer(self.base, self.head, linear=self.is_regression)
            config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=["hidden"])
            adapted = peft.get_peft_model(network, config).to(self.base.dtype)
        layer = adapted.base_model.model.hidden
        with torch.no_grad():
            layer.lora_A["default"].weight.zero_()
            layer.lora_B["default"].weight.copy_(self.expand)
        layer.lora_B["default"].weight.requires_grad_(False)
        return adapted.eval()

    def build(self, **config_changes: Any) -> BayesianLoRA:
        """A `BayesianLoRA` on a fresh network, of objective "elbo" with this problem's prior where not said otherwise.

        Its prior, likelihood and network are those of the problem, so that its posterior over A is the problem's.

        Args:
            config_changes: options of `MonteCLoRAConfig`; with objective="paper" its own defaults hold.

        Example:
            >>> model = regression_problem(0).build(num_components=4, sample_scale=0.1)  # doctest: +SKIP
        """
        if config_changes.get("objective", "elbo") == "elbo":
            own = {"objective": "elbo", "num_train_examples": len(self.inputs), "prior_scale": self.prior_scale}
            config_changes = own | config_changes
        likelihood = None if self.noise_scale is None else GaussianRegression(self.noise_scale)
        return BayesianLoRA(self.build_network(), MonteCLoRAConfig(**config_changes), likelihood)


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """N(mean, covariance) over A.

    Attributes:
        mean: (rank, in_features).
        covariance: of its rows one after another, (rank * in_features, rank * in_features).
    """

    mean: Tensor
    covariance: Tensor

    @cached_property
    def scale_tril(self) -> Tensor:
        """Cholesky factor of the covariance."""
        return torch.linalg.cholesky(self.covariance)  # type: ignore[no-any-return]

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (sample, rank, in_features)."""
        noise = torch.randn(num_samples, len(self.scale_tril), generator=generator, dtype=self.mean.dtype)
        return self.mean + (noise @ self.scale_tril.mT).unflatten(1, self.mean.shape)  # type: ignore[no-any-return]


def exact_posterior(problem: Problem) -> GaussianPosterior:
    """The posterior over A of a regression, in closed form.

    ``f(x; A) = V W0 x + Phi vec(A)`` with ``Phi_(c, ji) = s (V B)_cj x_i``, vec by rows, so

        covariance = (sum Phi' Phi / noise_scale^2 + I / prior_scale^2)^-1,
        mean = covariance sum Phi' (y - V W0 x) / noise_scale^2,

    summed over the training rows (Bishop 2006, Pattern Recognition and Machine Learning, equations 3.50 and 3.51).

    Raises:
        ConfigurationError: a classification, which has no closed form.
    """
    if problem.noise_scale is None:
        raise ConfigurationError(
            "the posterior of a classification has no closed form. Use nuts.sample_posterior, or regression_problem."
        )
    rows = torch.einsum("cj,ni->ncji", problem.head @ problem.expand, problem.inputs).flatten(2).flatten(0, 1)
    residual = (problem.labels - problem.inputs @ (problem.head @ problem.base).mT).flatten()
    identity = torch.eye(rows.shape[1], dtype=rows.dtype)
    precision = rows.mT @ rows / problem.noise_scale**2 + identity / problem.prior_scale**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ rows.mT @ residual / problem.noise_scale**2
    return GaussianPosterior(mean.unflatten(0, problem.shape), (covariance + covariance.mT) / 2)


def regression_problem(
    seed: int,
    *,
    num_examples: int = 40,
    num_test: int = 50,
    in_features: int = 5,
    rank: int = 2,
    width: int = 4,
    num_outputs: int = 2,
    prior_scale: float = 0.5,
    noise_scale: float = 1.0,
) -> Problem:
    """A regression with a Gaussian posterior over A.

    With the defaults both data and prior matter: posterior standard deviations of the entries of A are about 0.3 to
    0.95 times the prior's.

    Args:
        seed: of everything in it.
        num_examples, num_test: training rows, rows held out.
        in_features, rank, width, num_outputs: sizes of the network.
        prior_scale: standard deviation of the entries of A.
        noise_scale: standard deviation of the labels.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = _Sizes(num_examples, num_test, in_features, rank, width, num_outputs)
    problem = replace(_unlabelled(generator, sizes, prior_scale), noise_scale=noise_scale)
    exact = problem.logits(problem.true_a, problem.inputs)
    return replace(problem, labels=exact + noise_scale * _normal(generator, *exact.shape))


def classification_problem(
    seed: int,
    *,
    num_examples: int = 80,
    num_test: int = 50,
    in_features: int = 5,
    rank: int = 2,
    width: int = 4,
    num_classes: int = 3,
    prior_scale: float = 0.5,
) -> Problem:
    """A classification, whose posterior over A is not Gaussian: tanh units and a softmax.

    Args:
        seed: of everything in it.
        num_examples, num_test: training rows, rows held out.
        in_features, rank, width, num_classes: sizes of the network.
        prior_scale: standard deviation of the entries of A.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = _Sizes(num_examples, num_test, in_features, rank, width, num_classes)
    problem = _unlabelled(generator, sizes, prior_scale, head_gain=_SATURATING_GAIN)
    probs = problem.logits(problem.true_a, problem.inputs).softmax(-1)
    return replace(problem, labels=torch.multinomial(probs, 1, generator=generator).squeeze(1))


class _Sizes(NamedTuple):
    num_examples: int
    num_test: int
    in_features: int
    rank: int
    width: int
    num_outputs: int


def _unlabelled(generator: torch.Generator, sizes: _Sizes, prior_scale: float, head_gain: float = 1.0) -> Problem:
    """Everything but the labels; weights are scaled so that f has about the size of its inputs, times the gain."""
    correlation = torch.full((sizes.in_features,) * 2, _INPUT_CORRELATION, dtype=torch.float64)
    mixing = torch.linalg.cholesky(correlation.fill_diagonal_(1.0))
    inputs = _normal(generator, sizes.num_examples + sizes.num_test, sizes.in_features) @ mixing.mT
    return Problem(
        inputs=inputs[: sizes.num_examples],
        labels=inputs.new_empty(0),
        test_inputs=inputs[sizes.num_examples :],
        base=_normal(generator, sizes.width, sizes.in_features) / math.sqrt(sizes.in_features),
        expand=_normal(generator, sizes.width, sizes.rank) / math.sqrt(sizes.rank),
        head=_normal(generator, sizes.num_outputs, sizes.width) * head_gain / math.sqrt(sizes.width),
        true_a=prior_scale * _normal(generator, sizes.rank, sizes.in_features),
        prior_scale=prior_scale,
    )


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
