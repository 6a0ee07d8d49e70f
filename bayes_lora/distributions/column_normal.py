"""Multivariate normals over the columns of LoRA-A, one covariance shared by all columns of an adapter."""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl

from bayes_lora.errors import DistributionError
from bayes_lora.precision import full_precision, half_log_determinant

_OVERWRITTEN_FROM = 2**20  # entries


class ColumnNormal(TorchDistribution):  # type: ignore[misc]
    """Columns x_i ~ N(loc_i, L L'), i = 1..num_columns, with one factor L for all columns of an adapter.

    torch's MultivariateNormal would hold the (rank, rank) factor once per column: for 4096 columns of rank 32 that
    is 32 times the draw. Here it is held once, and a draw is one batched product ``L Z``.

    Args:
        scale_tril: (adapter, [component,] rank, rank) lower factors with positive diagonals.
        num_columns: columns per adapter, n_in.
        loc: (adapter, [component,] column, rank) means; None is zero.

    The batch shape is (adapter, [component,] column), the event shape (rank,).

    Raises:
        DistributionError: a diagonal of the factor not positive and finite (with argument validation on).

    Source: arXiv 2411.04358, Algorithm 1.

    Example:
        >>> ColumnNormal(torch.eye(4).expand(3, 4, 4), num_columns=10).rsample().shape
        torch.Size([3, 10, 4])
    """

    arg_constraints: ClassVar = {"scale_tril": constraints.lower_cholesky}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, scale_tril: Tensor, num_columns: int, loc: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        self.scale_tril = scale_tril
        self.num_columns = num_columns
        self.loc = loc
        check = torch.distributions.Distribution._validate_args if validate_args is None else validate_args
        diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
        if check and not bool(((diagonal > 0) & torch.isfinite(diagonal)).all()):
            raise DistributionError(f"ColumnNormal: scale_tril must have a positive, finite diagonal; got {diagonal}.")
        batch_shape = torch.Size((*scale_tril.shape[:-2], num_columns))
        super().__init__(batch_shape, scale_tril.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """(adapter, [component,] column, rank)."""
        shape = self.batch_shape + self.event_shape
        return self.scale_tril.new_zeros(shape) if self.loc is None else self.loc.expand(shape)

    @property
    def variance(self) -> Tensor:
        """Diagonal of L L' for every column, (adapter, [component,] column, rank)."""
        return self.scale_tril.square().sum(-1).unsqueeze(-2).expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ColumnNormal":
        """The same distribution with batch dimensions broadcast to `batch_shape`; its last entry stays the columns."""
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:  # plates ask for what is there already
            return self
        if shape[-1] != self.num_columns:
            raise DistributionError(f"ColumnNormal: cannot expand {self.num_columns} columns to batch shape {shape}.")
        loc = None if self.loc is None else self.loc.expand(shape + self.event_shape)
        factor = self.scale_tril.expand(shape[:-1] + self.scale_tril.shape[-2:])
        return ColumnNormal(factor, self.num_columns, loc, validate_args=False)

    @full_precision
    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws (*sample_shape, adapter, [component,] column, rank): loc + (L Z)' with Z standard normal.

        In memory the columns of a draw lie as those of LoRA-A do, so that they can be added without a stride.
        """
        shape = (*sample_shape, *self.scale_tril.shape[:-1], self.num_columns)
        noise = torch.randn(shape, dtype=self.scale_tril.dtype, device=self.scale_tril.device)
        draw = _coloured(noise, self.scale_tril).mT
        return draw if self.loc is None else draw + self.loc

    @full_precision
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of values (..., column, rank); returns (..., column)."""
        centred = value if self.loc is None else value - self.loc
        whitened = torch.linalg.solve_triangular(self.scale_tril, centred.mT, upper=False)
        normalizer = half_log_determinant(self.scale_tril) + self.event_shape[0] / 2 * math.log(2 * math.pi)
        return -whitened.square().sum(-2) / 2 - normalizer.unsqueeze(-1)  # type: ignore[no-any-return]


class IsotropicColumnNormal(ColumnNormal):
    """Columns x_i ~ N(0, std^2 I): the prior, to which the KL needs no triangular solve.

    Args:
        std: standard deviation of every entry.
        like: (adapter, [component,] rank, rank) the shape, dtype and device of the factors.
        num_columns: columns per adapter, n_in.

    Example:
        >>> IsotropicColumnNormal(0.1, like=torch.empty(3, 4, 4), num_columns=10).rsample().shape
        torch.Size([3, 10, 4])
    """

    def __init__(self, std: float, like: Tensor, num_columns: int) -> None:
        self.std = std
        factor = std * torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        super().__init__(factor.expand(like.shape), num_columns, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "IsotropicColumnNormal":
        """The same distribution with batch dimensions broadcast to `batch_shape`; its last entry stays the columns."""
        wide = super().expand(batch_shape)
        return self if wide is self else IsotropicColumnNormal(self.std, wide.scale_tril, self.num_columns)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of values (..., column, rank); returns (..., column)."""
        rank = self.event_shape[0]
        normalizer = rank * (math.log(self.std) + math.log(2 * math.pi) / 2)
        return -value.square().sum(-1) / (2 * self.std**2) - normalizer  # type: ignore[no-any-return]


def _coloured(noise: Tensor, factor: Tensor) -> Tensor:
    """L Z, (..., rank, column); without gradients a large Z is overwritten part by part, in its own memory."""
    if noise.numel() < _OVERWRITTEN_FROM or (torch.is_grad_enabled() and factor.requires_grad):
        return factor @ noise
    flat = noise.flatten(end_dim=-3)
    for part, own in zip(flat, factor.expand(*noise.shape[:-2], -1, -1).flatten(end_dim=-3), strict=True):
        part.copy_(own @ part)
    return noise


@register_kl(ColumnNormal, ColumnNormal)  # type: ignore[untyped-decorator]
@full_precision
def _kl_column_normal_column_normal(q: ColumnNormal, p: ColumnNormal) -> Tensor:
    """KL per column: 1/2 (tr(P^-1 Q) + d' P^-1 d - ln|P^-1 Q| - r), d = loc_q - loc_p; (adapter, [component,] column).

    Everything but d is the same for all columns of an adapter, so it is computed once and broadcast.
    """
    ratio = torch.linalg.solve_triangular(p.scale_tril, q.scale_tril, upper=False)
    log_det = half_log_determinant(q.scale_tril) - half_log_determinant(p.scale_tril)
    kl = ((ratio.square().sum((-2, -1)) - q.event_shape[0]) / 2 - log_det).unsqueeze(-1)
    if q.loc is not None or p.loc is not None:
        shift = q.mean - p.mean
        kl = kl + torch.linalg.solve_triangular(p.scale_tril, shift.mT, upper=False).square().sum(-2) / 2
    return kl.expand(q.batch_shape)  # type: ignore[no-any-return]


@register_kl(ColumnNormal, IsotropicColumnNormal)  # type: ignore[untyped-decorator]
@full_precision
def _kl_column_normal_isotropic(q: ColumnNormal, p: IsotropicColumnNormal) -> Tensor:
    """KL per column: 1/2 ((|L|^2 + |loc|^2) / std^2 - r) - sum_j ln(L_jj / std); (adapter, [component,] column)."""
    rank = q.event_shape[0]
    constant = rank * (math.log(p.std) - 0.5)
    kl = q.scale_tril.square().sum((-2, -1)) / (2 * p.std**2) - half_log_determinant(q.scale_tril) + constant
    kl = kl.unsqueeze(-1)
    if q.loc is not None:
        kl = kl + q.loc.square().sum(-1) / (2 * p.std**2)
    return kl.expand(q.batch_shape)  # type: ignore[no-any-return]
