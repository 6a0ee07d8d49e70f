"""Column normals whose KL is averaged, in closed form, over the Wishart that their covariance was drawn from."""

from typing import Any

from torch import Tensor, diag_embed
from torch.distributions import kl_divergence, register_kl

from bayes_lora.distributions.column_normal import ColumnNormal, IsotropicColumnNormal
from bayes_lora.distributions.wishart import Wishart
from bayes_lora.precision import full_precision


class ExpectedColumnNormal(ColumnNormal):
    """Columns x_i ~ N(loc_i, s^2 Sigma), where Sigma is a draw from a Wishart that is remembered.

    Draws, densities and moments are `ColumnNormal`'s, given that Sigma. Its KL is the expectation over Sigma,

        E KL(N(loc, s^2 Sigma) || p) = KL(N(loc, s^2 E[Sigma]) || p) + 1/2 (ln|E[Sigma]| - E[ln|Sigma|])

    which has the same mean as the KL at the draw, and none of its noise. The last part is a number; see
    `Wishart.log_determinant_gap`.

    Args:
        scale_tril: (adapter, [component,] rank, rank) lower factors of s^2 Sigma.
        num_columns: columns per adapter, n_in.
        wishart: where Sigma comes from, of a batch shape that broadcasts to (adapter, [component]).
        spread: s, of a shape that broadcasts likewise; None is 1.
        loc: (adapter, [component,] column, rank) means; None is zero.

    Raises:
        DistributionError: as `ColumnNormal`.

    Source: docs/theory.md, "The KL of the noise, sampled or expected".

    Example:
        >>> wishart = Wishart(torch.tensor([8.0]), torch.ones(1, 4))
        >>> q = ExpectedColumnNormal(cholesky_factor(wishart.rsample()), 10, wishart)
        >>> kl_divergence(q, ColumnNormal(torch.eye(4).expand(1, 4, 4), 10)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        scale_tril: Tensor,
        num_columns: int,
        wishart: Wishart,
        spread: Tensor | None = None,
        loc: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(scale_tril, num_columns, loc, validate_args)
        self.wishart = wishart
        self.spread = spread

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ExpectedColumnNormal":
        """The same distribution with batch dimensions broadcast to `batch_shape`; its last entry stays the columns."""
        wide = super().expand(batch_shape)
        if wide is self:
            return self
        return ExpectedColumnNormal(
            wide.scale_tril, self.num_columns, self.wishart, self.spread, wide.loc, validate_args=False
        )

    @property
    def averaged(self) -> ColumnNormal:
        """N(loc, s^2 E[Sigma]), of this batch shape."""
        deviations = (self.wishart.df.unsqueeze(-1) * self.wishart.scale_diagonal).sqrt()
        if self.spread is not None:
            deviations = self.spread.unsqueeze(-1) * deviations
        factor = diag_embed(deviations).expand_as(self.scale_tril)
        return ColumnNormal(factor, self.num_columns, self.loc, validate_args=False)


@register_kl(ExpectedColumnNormal, IsotropicColumnNormal)  # type: ignore[untyped-decorator]
@register_kl(ExpectedColumnNormal, ColumnNormal)  # type: ignore[untyped-decorator]
@full_precision
def _kl_expected_column_normal_column_normal(q: ExpectedColumnNormal, p: ColumnNormal) -> Tensor:
    """KL per column, averaged over Sigma: (adapter, [component,] column)."""
    kl: Tensor = kl_divergence(q.averaged, p) + q.wishart.log_determinant_gap.unsqueeze(-1) / 2
    return kl
