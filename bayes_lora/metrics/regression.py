"""Real-valued predictions under several draws: what is noise in them, what is not known, and how good they are."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.metrics.crps import mixture_crps
from bayes_lora.metrics.drawn_prediction import DrawnPrediction
from bayes_lora.metrics.labels import known_labels

INTERVAL = 0.9
# Probabilities at which predicted quantiles are held against the labels.
QUANTILES = np.linspace(0.05, 0.95, 19)
# Halvings of a bracket as wide as the noise's quantiles are apart over draws: to its double precision.
_BISECTIONS = 60


@dataclass(frozen=True)
class RegressionPrediction(DrawnPrediction):
    """``y ~ 1/S sum_s p(y; m_s, sigma_s)``: under every draw s a Gaussian, or Student's t, in each output.

    Attributes:
        logits: m, (sample, example, output), what the network says.
        labels: (example, output) where the rows had labels, else None.
        noise_scale: sigma, (output,), in units of the labels; (sample, output) where draws differ in it, such as the
            members of an ensemble, each of which has learned its own.
        degrees_of_freedom: nu of Student's t; None is a Gaussian.
    """

    logits: Tensor
    labels: Tensor | None
    noise_scale: Tensor
    degrees_of_freedom: float | None = None

    @cached_property
    def mean(self) -> Tensor:
        """The posterior predictive's mean, (example, output)."""
        return self.logits.double().mean(0)

    @cached_property
    def scales(self) -> Tensor:
        """sigma of every draw, (sample, 1, output), in double precision."""
        return self.noise_scale.double().expand(len(self.logits), -1).unsqueeze(1)

    @cached_property
    def epistemic_variance(self) -> Tensor:
        """Variance of the means over draws, (example, output): what more data would take away."""
        return self.logits.double().var(0, correction=0)

    @cached_property
    def noise_variance(self) -> Tensor:
        """Mean of the variances under the draws, (output,): what no data takes away; of Student's t,
        ``sigma^2 nu / (nu - 2)``."""
        nu = self.degrees_of_freedom
        return self.scales.square().mean((0, 1)) * (1 if nu is None else nu / (nu - 2))

    @cached_property
    def total_variance(self) -> Tensor:
        """Of the posterior predictive, (example, output): the sum of the two."""
        return self.epistemic_variance + self.noise_variance

    @cached_property
    def mutual_information(self) -> Tensor:
        """Of a row's labels and the draw, (example,), nats, as if both were Gaussian: ``1/2 sum_o ln(total variance /
        noise variance)``. Under Gaussian noise it is no less than the true one of a single output.

        Source: Houlsby et al. 2011, Bayesian active learning for classification and preference learning, of regression.
        """
        found: Tensor = torch.log1p(self.epistemic_variance / self.noise_variance).sum(-1) / 2
        return found

    @cached_property
    def draw_log_density(self) -> Tensor:
        """ln prod_o p(y_o; m_so, sigma_so) of the labels under every draw, (sample, example), nats.

        Raises:
            DataError: the rows have no labels.
        """
        errors = ((self._labels - self.logits.double()) / self.scales).numpy()
        of_draws = torch.from_numpy(self._noise.logpdf(errors)) - self.scales.log()
        return of_draws.sum(-1)

    @cached_property
    def log_density(self) -> Tensor:
        """ln 1/S sum_s prod_o p(y_o; m_so, sigma_so) of the labels, (example,), nats.

        Raises:
            DataError: the rows have no labels.
        """
        log_density: Tensor = self.draw_log_density.logsumexp(0) - math.log(len(self.logits))
        return log_density

    def drawn(self, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Labels of every example under one draw, with its noise, (count, example, output)."""
        location, scale = self.logits[draw].double(), self.scales[draw]
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        noise = self._noise.rvs(size=(count, *location.shape), random_state=random)
        labels: Tensor = location + scale * torch.from_numpy(noise)
        return labels

    @cached_property
    def rmse(self) -> float:
        """Root mean square error of the mean, over rows and outputs.

        Raises:
            DataError: the rows have no labels.
        """
        return float((self.mean - self._labels).square().mean().sqrt())

    def cdf(self, values: Tensor) -> Tensor:
        """F(y) = P(Y <= y) of the predictive at values (..., example, output), of the same shape."""
        found = torch.zeros(values.shape, dtype=torch.double)
        for draw in range(len(self.logits)):
            found += self.draw_cdf(draw, values)
        return found / len(self.logits)

    def draw_cdf(self, draw: int, values: Tensor) -> Tensor:
        """P(Y <= y) under one draw at values (..., example, output), of the same shape."""
        location, scale = self.logits[draw].double(), self.scales[draw]
        errors, nu = ((values.double() - location) / scale).numpy(), self.degrees_of_freedom
        # Of scipy's functions, since its distributions take ten times as long over few numbers.
        return torch.from_numpy(special.ndtr(errors) if nu is None else special.stdtr(nu, errors))

    def quantile(self, probability: float) -> Tensor:
        """The y with F(y) = probability, (example, output), by bisection.

        Raises:
            ConfigurationError: a probability not between 0 and 1.
        """
        if not 0 < probability < 1:
            raise ConfigurationError(f"probability={probability!r} must lie between 0 and 1, such as 0.95.")
        low, high = (self.logits.double() + self._noise.ppf(probability) * self.scales).aminmax(dim=0)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self.cdf(middle) < probability
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        quantile: Tensor = (low + high) / 2
        return quantile

    def interval(self, probability: float = INTERVAL) -> tuple[Tensor, Tensor]:
        """The bounds, (example, output) each, outside of which are (1 - probability) / 2 on either side."""
        tail = (1 - probability) / 2
        return self.quantile(tail), self.quantile(1 - tail)

    @cached_property
    def interval_90(self) -> tuple[Tensor, Tensor]:
        """`interval` of 90 %."""
        return self.interval()

    @cached_property
    def crps(self) -> Tensor:
        """Continuous ranked probability score of each label, (example, output), see `mixture_crps`.

        Raises:
            DataError: the rows have no labels.
        """
        return mixture_crps(self.logits, self._labels, self.noise_scale, self.degrees_of_freedom)

    def spread(self, factor: float) -> "RegressionPrediction":
        """The predictive drawn out about its mean m by a factor k: of ``m + k (y - m)``."""
        logits = self.mean + factor * (self.logits.double() - self.mean)
        return replace(self, logits=logits, noise_scale=factor * self.noise_scale)

    def metrics(self) -> dict[str, float]:
        """What an evaluation reports; means over outputs where there are several.

            nll               mean of -ln p(y), nats, of all outputs of a row together
            rmse              of the mean, in units of the labels
            crps              see `crps`, in units of the labels
            pearson, spearman correlation of mean and label; NaN where either is constant
            coverage_90       share of labels in the central interval of 90 %
            width_90          mean width of that interval, in units of the labels
            quantile_error    mean over p = .05, .10, ... .95 of |share of labels below the p-quantile - p|

        Raises:
            DataError: the rows have no labels, or none at all.
        """
        labels = self._labels
        low, high = self.interval_90
        return {
            "nll": -float(self.log_density.mean()),
            "rmse": self.rmse,
            "crps": float(self.crps.mean()),
            "pearson": self._correlation(lambda x, y: stats.pearsonr(x, y).statistic),
            "spearman": self._correlation(lambda x, y: stats.spearmanr(x, y).statistic),
            "coverage_90": float(((low <= labels) & (labels <= high)).double().mean()),
            "width_90": float((high - low).mean()),
            "quantile_error": float(np.abs(self.shares_below - QUANTILES).mean()),
        }

    @cached_property
    def shares_below(self) -> Any:
        """The share of all labels below each quantile of `QUANTILES`: these themselves where calibrated.

        Raises:
            DataError: the rows have no labels.
        """
        return (self.cdf(self._labels).numpy().reshape(-1, 1) <= QUANTILES).mean(0)

    @property
    def _noise(self) -> Any:
        """At 0, of scale 1."""
        return stats.norm() if self.degrees_of_freedom is None else stats.t(self.degrees_of_freedom)

    def _correlation(self, of: Any) -> float:
        found = []
        for mean, label in zip(self.mean.T.numpy(), self._labels.T.numpy(), strict=True):
            constant = len(mean) < 2 or np.ptp(mean) == 0 or np.ptp(label) == 0
            found.append(math.nan if constant else float(of(mean, label)))
        return sum(found) / len(found)

    @cached_property
    def _labels(self) -> Tensor:
        labels = known_labels(self.labels).double()
        if not len(labels) or not torch.isfinite(self.logits).all():
            raise DataError(
                "metrics need at least one row and predictions that are numbers. Predict rows with a fit whose loss "
                "and weights are finite."
            )
        return labels
