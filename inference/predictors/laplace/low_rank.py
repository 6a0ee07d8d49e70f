"""Sums of outer products, whole or cut to their largest eigenvalues as the rows come."""

from typing import Protocol

import torch
from torch import Tensor

from bayes_lora.precision import full_precision

_LEAST_ROWS_AT_A_TIME = 64  # fewer would spend more on starting decompositions than on computing them


class OuterSum(Protocol):
    """sum_i x_i x_i' over rows x_i, and its eigenvalues."""

    def add(self, rows: Tensor) -> None:
        """Add the outer products of `rows` (row, feature)."""
        ...

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (k,), >= 0, and eigenvectors (feature, k), in double precision."""
        ...


def outer_sum(width: int, max_rank: int | None, device: torch.device) -> OuterSum:
    """A sum that keeps at most `max_rank` eigenvectors, or all of them where that is None or no restriction.

    Args:
        width: number of features.
        max_rank: most eigenvectors to keep.
        device: where the rows are.
    """
    whole = max_rank is None or width <= max_rank
    return WholeSum(width, device) if whole else TruncatedSum(width, max_rank or width, device)


class WholeSum:
    """The matrix itself, (feature, feature)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.matrix = torch.zeros(width, width, dtype=torch.float64, device=device)

    @full_precision
    def add(self, rows: Tensor) -> None:
        self.matrix += rows.mT @ rows

    def eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.matrix)
        return values.clamp_min(0), vectors


class TruncatedSum:
    """The best approximation of rank k so far, by incremental singular value decomposition.

    With ``S ~ F F'``, F of shape (feature, k), adding rows X gives ``S + X'X = [F X'] [F X']'``; its k largest
    singular vectors are the new F. Nothing of size (feature, feature) is ever made. It is exact while the sum has rank
    <= k; else it underestimates S, by no more than the sum of what was cut (Levy and Lindenbaum 2000, "Sequential
    Karhunen-Loeve basis extraction").
    """

    def __init__(self, width: int, rank: int, device: torch.device) -> None:
        self.rank = rank
        self.factor = torch.zeros(width, 0, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        for part in rows.double().split(max(self.rank, _LEAST_ROWS_AT_A_TIME)):
            vectors, values, _ = torch.linalg.svd(torch.cat([self.factor, part.mT], dim=1), full_matrices=False)
            self.factor = vectors[:, : self.rank] * values[: self.rank]

    def eigen(self) -> tuple[Tensor, Tensor]:
        vectors, values, _ = torch.linalg.svd(self.factor, full_matrices=False)
        return values.square(), vectors
