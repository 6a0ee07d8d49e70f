"""Normals over the columns of LoRA-A with a diagonal covariance."""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl

from bayes_lora.distributions.column_normal import ColumnNormal
from bayes_lora.precision import full_precision, half_log_determinant


class DiagonalNormal(TorchDistribution):  # type: ignore[misc]
    """Columns x_i ~ N(loc_i, diag scale_i^2), with a closed-form KL to a `ColumnNormal`.

    Args:
        loc: (adapter, column, rank).
        scale: (adapter, column, rank), positive.

    The batch shape is (adapter, column), the event shape (rank,), as those of a `ColumnNormal`.
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """(adapter, column, rank)."""
        return self.loc  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        """(adapter, column, rank)."""
        return self.scale.square()  # type: ignore[no-any-return]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormal":
        """The same distribution with batch dimensions broadcast to `batch_shape`."""
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:
            return self
        wide = shape + self.event_shape
        return DiagonalNormal(self.loc.expand(wide), self.scale.expand(wide), validate_args=False)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws (*sample_shape, adapter, column, rank)."""
        shape = torch.Size(sample_shape) + self.loc.shape
        return torch.addcmul(self.loc, self.scale, torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of values (..., column, rank); returns (..., column)."""
        whitened = (value - self.loc) / self.scale
        return -(whitened.square() / 2 + self.scale.log() + math.log(2 * math.pi) / 2).sum(-1)  # type: ignore[no-any-return]


@register_kl(DiagonalNormal, ColumnNormal)  # type: ignore[untyped-decorator]
@full_precision
def _kl_diagonal_normal_column_normal(q: DiagonalNormal, p: ColumnNormal) -> Tensor:
    """KL per column: 1/2 (tr(P^-1 diag sigma^2) + d' P^-1 d - r + ln|P|) - sum ln sigma, d = loc_q - loc_p.

    Returns (adapter, column). The prior's factor is inverted once for all columns of an adapter.
    """
    identity = torch.eye(p.event_shape[0], dtype=p.scale_tril.dtype, device=p.scale_tril.device)
    inverse = torch.linalg.solve_triangular(p.scale_tril, identity.expand_as(p.scale_tril), upper=False)
    precision = inverse.square().sum(-2).unsqueeze(-2)  # diagonal of P^-1, (adapter, 1, rank)
    shift = q.loc if p.loc is None else q.loc - p.loc
    distance = (shift @ inverse.mT).square().sum(-1)
    spread = (q.variance * precision - 2 * q.scale.log() - 1).sum(-1)
    return (spread + distance) / 2 + half_log_determinant(p.scale_tril).unsqueeze(-1)  # type: ignore[no-any-return]
