"""The Wishart distribution over adapter covariances, sampled by its Bartlett factor."""

import math
from functools import cached_property
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl

from bayes_lora.errors import DistributionError
from bayes_lora.precision import full_precision, half_log_determinant

_FACTOR = "_bayes_lora_factor"


class Wishart(TorchDistribution):  # type: ignore[misc]
    """Wishart(df, V) with a diagonal scale matrix V = diag(v), over (rank, rank) covariances.

    A draw is ``Sigma = (F T)(F T)'`` with ``F = diag(sqrt v)`` and Bartlett's T: lower triangular,
    ``T_ii^2 ~ chi2(df - i)`` for i = 0..rank-1, ``T_ij ~ N(0, 1)`` below. ``E[Sigma] = df V``. Since T has a positive
    diagonal, ``F T`` is the Cholesky factor of the draw; it travels with the value (`cholesky_factor`), so that
    nobody decomposes what was just composed. Differentiable in v, not in df.

    Args:
        df: (adapter,) degrees of freedom, at least the rank.
        scale_diagonal: (adapter, rank) v > 0.

    Raises:
        DistributionError: df below the rank, or v not positive and finite (with argument validation on).

    Source: Bartlett (1933); arXiv 2411.04358, section 4 and Appendix A.2.

    Example:
        >>> covariance = Wishart(torch.tensor([8.0]), torch.ones(1, 4)).rsample()
        >>> covariance.shape
        torch.Size([1, 4, 4])
    """

    arg_constraints: ClassVar = {
        "df": constraints.positive,
        "scale_diagonal": constraints.independent(constraints.positive, 1),
    }
    support = constraints.positive_definite
    has_rsample = True

    def __init__(self, df: Tensor, scale_diagonal: Tensor, validate_args: bool | None = None) -> None:
        rank, batch_shape = scale_diagonal.shape[-1], df.shape
        # The tensors themselves where no expansion is needed, so that two Wisharts can be seen to share one (the KL).
        if scale_diagonal.shape[:-1] != batch_shape:
            batch_shape = torch.broadcast_shapes(batch_shape, scale_diagonal.shape[:-1])
            df, scale_diagonal = df.expand(batch_shape), scale_diagonal.expand((*batch_shape, rank))
        self.df, self.scale_diagonal = df, scale_diagonal
        check = torch.distributions.Distribution._validate_args if validate_args is None else validate_args
        if check and not bool(((df >= rank) & torch.isfinite(df)).all()):
            raise DistributionError(f"Wishart: df must be at least the rank {rank} and finite; got {df}.")
        if check and not bool(((scale_diagonal > 0) & torch.isfinite(scale_diagonal)).all()):
            raise DistributionError(f"Wishart: scale_diagonal must be positive and finite; got {scale_diagonal}.")
        super().__init__(batch_shape, torch.Size((rank, rank)), validate_args=False)

    @property
    def rank(self) -> int:
        """Rows of a draw."""
        return int(self.event_shape[-1])

    @property
    def mean(self) -> Tensor:
        """E[Sigma] = df V, (adapter, rank, rank)."""
        return torch.diag_embed(self.df.unsqueeze(-1) * self.scale_diagonal)

    @property
    def log_determinant_gap(self) -> Tensor:
        """ln|E[Sigma]| - E[ln|Sigma|] = r ln(nu / 2) - sum_{j<r} psi((nu - j) / 2), (adapter,); whatever V is."""
        return self.rank * (self.df / 2).log() - _multivariate_digamma(self.df, self.rank)

    def with_scale(self, scale_diagonal: Tensor) -> "Wishart":
        """The Wishart of another v (adapter, rank), which shares with this one what depends on df alone."""
        other = Wishart(self.df, scale_diagonal, validate_args=False)
        if other.batch_shape == self.batch_shape:
            other._half_df = self._half_df
        return other

    @cached_property
    def _half_df(self) -> Tensor:
        """(nu - i) / 2 for i = 0..rank-1, (adapter, rank)."""
        rows = torch.arange(self.rank, dtype=self.scale_diagonal.dtype, device=self.scale_diagonal.device)
        return (self.df.unsqueeze(-1) - rows) / 2

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Wishart":
        """The same distribution with batch dimensions broadcast to `batch_shape`."""
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:  # plates ask for what is there already
            return self
        return Wishart(self.df.expand(shape), self.scale_diagonal.expand((*shape, self.rank)), validate_args=False)

    @full_precision
    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws (*sample_shape, adapter, rank, rank), each carrying its factor."""
        shape = torch.Size(sample_shape) + self.batch_shape
        half_df = self._half_df
        with torch.no_grad():
            gamma = torch._standard_gamma(half_df.expand((*shape, self.rank)))
            # It can underflow to 0 in float32, where its shape is 1/2; its logarithm is needed later.
            chi = gamma.clamp_min_(torch.finfo(gamma.dtype).tiny).mul_(2).sqrt_()
            normals = torch.randn((*shape, self.rank, self.rank), dtype=half_df.dtype, device=half_df.device)
            bartlett = normals.tril_(-1)
            bartlett.diagonal(dim1=-2, dim2=-1).copy_(chi)
        factor = self.scale_diagonal.sqrt().unsqueeze(-1) * bartlett
        covariance = factor @ factor.mT
        setattr(covariance, _FACTOR, (factor, _version(covariance)))
        return covariance

    @full_precision
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of covariances (..., adapter, rank, rank); returns (..., adapter)."""
        r, df, v = self.rank, self.df, self.scale_diagonal
        log_det = 2 * half_log_determinant(cholesky_factor(value))
        trace = (value.diagonal(dim1=-2, dim2=-1) / v).sum(-1)
        normalizer = df * r / 2 * math.log(2) + df / 2 * v.log().sum(-1) + torch.mvlgamma(df / 2, r)
        return (df - r - 1) / 2 * log_det - trace / 2 - normalizer


def cholesky_factor(covariance: Tensor) -> Tensor:
    """The lower factor L of covariances (..., rank, rank) = L L': the one a draw carries, else by Cholesky.

    Raises:
        DistributionError: a covariance set by hand is not positive definite.
    """
    carried = getattr(covariance, _FACTOR, None)
    # A draw changed in place since then no longer is what its factor says.
    if carried is not None and carried[1] == _version(covariance):
        return carried[0]  # type: ignore[no-any-return]
    factor, info = torch.linalg.cholesky_ex(covariance)
    if bool((info > 0).any()):
        # With nu = rank a draw is often so close to singular that its entries, rounded, are not positive definite
        # any more: add what rounding may have taken.
        largest = covariance.diagonal(dim1=-2, dim2=-1).amax(-1)
        rounding = 8 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps * largest
        mended = covariance + torch.diag_embed(rounding.unsqueeze(-1).expand(covariance.shape[:-1]))
        lifted, info = torch.linalg.cholesky_ex(torch.where((info > 0)[..., None, None], mended, covariance))
        factor = lifted
    if bool((info > 0).any()):
        raise DistributionError(
            "a covariance is not positive definite, so it has no Cholesky factor. "
            "Condition Sigma on symmetric matrices with positive eigenvalues."
        )
    return factor  # type: ignore[no-any-return]


def _multivariate_digamma(df: Tensor, rank: int) -> Tensor:
    """psi_r(nu / 2) = sum_{j<r} psi((nu - j) / 2), of the shape of `df`."""
    return torch.digamma((df.unsqueeze(-1) - torch.arange(rank, dtype=df.dtype, device=df.device)) / 2).sum(-1)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@register_kl(Wishart, Wishart)  # type: ignore[untyped-decorator]
@full_precision
def _kl_wishart_wishart(q: Wishart, p: Wishart) -> Tensor:
    """KL(W(nu_q, V_q) || W(nu_p, V_p)); for nu_q = nu_p = nu it is 1/2 (nu tr(V_q/V_p) - nu ln|V_q/V_p| - nu r).

    Shape (adapter,), nats. The terms in which nu differs are skipped where both share one `df` tensor.
    """
    r = q.rank
    ratio = q.scale_diagonal / p.scale_diagonal
    if q.df is p.df:
        return q.df / 2 * ((ratio - ratio.log()).sum(-1) - r)
    kl = (q.df * (ratio.sum(-1) - r) - p.df * ratio.log().sum(-1)) / 2
    digammas = _multivariate_digamma(q.df, r)
    return kl + (q.df - p.df) / 2 * digammas + torch.mvlgamma(p.df / 2, r) - torch.mvlgamma(q.df / 2, r)
