"""Blocks of the posterior precision, one for each Linear: curvature plus prior precision.

The posterior over the parameters of one Linear, a matrix W (out, in), is N(W*, P^{-1}) with ``P = H + lambda I``, H
the generalized Gauss-Newton matrix of the negative log-likelihood and lambda the precision of the prior. Blocks store
H; lambda comes with every question, so that it can be tuned without another pass over the data.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bayes_lora.precision import full_precision


class Block(Protocol):
    """What the posterior asks of the curvature of one Linear."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the parameters."""
        ...

    def log_determinant(self, prior_precision: Tensor) -> Tensor:
        """ln|H + lambda I|, a scalar in double precision; differentiable with respect to lambda."""
        ...

    def output_covariance(self, jacobian: Tensor, prior_precision: float) -> Tensor:
        """J (H + lambda I)^{-1} J'.

        Args:
            jacobian: J, (example, class, out, in), the gradient of every logit with respect to W.
            prior_precision: lambda.

        Returns:
            (example, class, class).
        """
        ...

    def draw(self, noise: Tensor, prior_precision: float) -> Tensor:
        """(H + lambda I)^{-1/2} z: a draw of W - W* for each draw z of standard normal numbers (draw, out, in)."""
        ...

    def to(self, device: torch.device) -> "Block":
        """The same block on another device."""
        ...


@dataclass(frozen=True)
class DiagonalBlock:
    """H = diag(curvature).

    Attributes:
        curvature: (out, in), >= 0, double precision.
    """

    curvature: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.curvature.shape[0], self.curvature.shape[1]

    def log_determinant(self, prior_precision: Tensor) -> Tensor:
        return (self.curvature + prior_precision.to(self.curvature)).log().sum()

    @full_precision
    def output_covariance(self, jacobian: Tensor, prior_precision: float) -> Tensor:
        return _gram(jacobian * (self.curvature + prior_precision).rsqrt().to(jacobian))

    def draw(self, noise: Tensor, prior_precision: float) -> Tensor:
        return noise * (self.curvature + prior_precision).rsqrt().to(noise)

    def to(self, device: torch.device) -> "DiagonalBlock":
        return DiagonalBlock(self.curvature.to(device))


@dataclass(frozen=True)
class KroneckerBlock:
    """H = L (x) R with L = U diag(l) U' acting on outputs and R = V diag(r) V' on inputs.

    U and V have orthonormal columns, perhaps fewer than rows: then H is zero on what they do not span, and the
    posterior there is the prior. So a factor that was cut to its largest eigenvalues makes the posterior wider, never
    narrower.

    Attributes:
        left_values: l, (left,), >= 0, double precision, as are the others.
        left_vectors: U, (out, left).
        right_values: r, (right,), >= 0.
        right_vectors: V, (in, right).
    """

    left_values: Tensor
    left_vectors: Tensor
    right_values: Tensor
    right_vectors: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.left_vectors.shape[0], self.right_vectors.shape[0]

    @property
    def _eigenvalues(self) -> Tensor:
        return torch.outer(self.left_values, self.right_values)

    def log_determinant(self, prior_precision: Tensor) -> Tensor:
        precision, eigenvalues = prior_precision.to(self.left_values), self._eigenvalues
        num_outputs, num_inputs = self.shape
        unseen = num_outputs * num_inputs - eigenvalues.numel()
        return (eigenvalues + precision).log().sum() + unseen * precision.log()

    @full_precision
    def output_covariance(self, jacobian: Tensor, prior_precision: float) -> Tensor:
        left, right = self.left_vectors.to(jacobian), self.right_vectors.to(jacobian)
        seen = left.mT @ jacobian @ right
        covariance = _gram(seen * (self._eigenvalues + prior_precision).rsqrt().to(jacobian))
        if self._eigenvalues.numel() < left.shape[0] * right.shape[0]:
            # The remainder itself, not the difference of two Gram matrices, which rounding can make negative.
            covariance = covariance + _gram(jacobian - left @ seen @ right.mT) / prior_precision
        return covariance

    @full_precision
    def draw(self, noise: Tensor, prior_precision: float) -> Tensor:
        left, right = self.left_vectors.to(noise), self.right_vectors.to(noise)
        # The symmetric root: 1 / sqrt(lambda) everywhere, and what is missing where there is curvature.
        root = (self._eigenvalues + prior_precision).rsqrt() - prior_precision**-0.5
        seen: Tensor = left.mT @ noise @ right
        drawn: Tensor = noise * prior_precision**-0.5 + left @ (seen * root.to(noise)) @ right.mT
        return drawn

    def to(self, device: torch.device) -> "KroneckerBlock":
        parts = (self.left_values, self.left_vectors, self.right_values, self.right_vectors)
        return KroneckerBlock(*(part.to(device) for part in parts))


def _gram(rows: Tensor) -> Tensor:
    """Inner products of (example, class, out, in) over the last two: (example, class, class), double precision."""
    flat = rows.flatten(2)
    return (flat @ flat.mT).double()
