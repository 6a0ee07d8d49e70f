"""Temperature scaling: one number, fitted on held-out rows, that makes a predictor more or less sure."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor

from bayes_lora.checks import all_numbers, require_class_ids, require_positive
from bayes_lora.errors import DataError
from bayes_lora.inference.predictors.predictor import Predictor
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import Classification, Likelihood

LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3

_HALVINGS = 60  # of the bracket of log T, which is then as narrow as rounding
_GRID = 241  # values of log T that a search begins with
_FLAT = 1e-12  # log probabilities of a row that differ by less are equal but for rounding


@dataclass(frozen=True, eq=False)
class TemperatureScaled:
    """``q(y | x) proportional to p(y | x)^(1 / T)`` with p the mean probabilities of any predictor.

    For a point estimate this is ``softmax(logits / T)``. The order of the classes stays, and with it the predicted
    class and the accuracy. The result has one sample: what several draws disagreed about is in p alone.

    Of other labels than classes T does what `Likelihood.rescaled` says: of each of several labels the same to its odds,
    of real numbers it draws the predictive out about its mean, ``m + T (y - m)``.

    Cost: that of the predictor.

    Args:
        predictor: any `Predictor`; `num_samples` and `seed` are passed on to it.
        temperature: T > 0; above 1 it makes the prediction less sure. See `fit_temperature`.
        likelihood: of the labels; None is one class for each row.

    Raises:
        ConfigurationError: a temperature that is not positive and finite.
        LikelihoodError: when called: a likelihood that says nothing of temperatures.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.

    Example:
        >>> temperature = fit_temperature(predictor(held_out))  # doctest: +SKIP
        >>> prediction = TemperatureScaled(predictor, temperature)(loader)  # doctest: +SKIP
    """

    predictor: Predictor
    temperature: float
    likelihood: Likelihood | None = None

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature)

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        mixed = self.predictor(loader, num_samples=num_samples, seed=seed, on_batch=on_batch)
        likelihood = self.likelihood or Classification()
        return likelihood.rescaled(mixed, self.temperature)  # type: ignore[no-any-return]


def fit_temperature(prediction: Any, likelihood: Likelihood | None = None) -> float:
    """The T in [1e-3, 1e3] at which `TemperatureScaled` has the least mean NLL on labelled rows.

    With z the log of the mean probabilities and ``b = 1 / T``, the mean over rows of

        NLL(b) = log sum_c exp(b z_c) - b z_label,    d NLL / d b = sum_c p_c(b) (z_c - z_label)

    is convex in b, so its slope changes sign once at most; where, is found by bisection of log T to rounding.
    At the ends:

        every label is the most probable class: the surer the better, without
        end, until a first row is wrong                                          T = 1, and a warning
        the labels' log p is on average at most that of a class picked blindly   T = 1e3; with two classes, for
                                                                                 example, where every row is wrong
        every row has equal probabilities, so that T changes nothing             T = 1

    Where the likelihood makes choices between classes, for each word or label say, it is the mean over choices. Of real
    numbers it is the least mean NLL of rows by search: 241 values of log T, and Brent's method around the best. At the
    ends, it is they.

    Args:
        prediction: of rows that the predictor was not trained on.
        likelihood: of the labels; None is one class for each row.

    Raises:
        DataError: no labels, no rows, labels outside the classes, or logits that are NaN or infinite.
        LikelihoodError: a likelihood that says nothing of temperatures.

    Source: Guo et al. 2017, section 4.2.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]])
        >>> round(fit_temperature(Prediction(logits, torch.tensor([0, 0, 1]))), 6)  # 2 / T = log 2
        2.88539
    """
    if prediction.labels is None:
        raise DataError(
            "a temperature is fitted to labels, and these rows have none. Predict rows with a 'labels' column."
        )
    likelihood = likelihood or Classification()
    choices = likelihood.choices(prediction)
    return _searched(prediction, likelihood) if choices is None else _of_classes(choices)


def _searched(prediction: Any, likelihood: Likelihood) -> float:
    """Of any likelihood: where the mean NLL is least."""

    def loss(log_temperature: float) -> float:
        rescaled = likelihood.rescaled(prediction, math.exp(log_temperature))
        return -float(likelihood.row_log_density(rescaled).mean())

    grid = np.linspace(math.log(LEAST_TEMPERATURE), math.log(MOST_TEMPERATURE), _GRID)
    best = int(np.argmin([loss(at) for at in grid]))
    if best in (0, _GRID - 1):
        return math.exp(grid[best])
    found = minimize_scalar(loss, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-9})
    return math.exp(float(found.x))


def _of_classes(prediction: Prediction) -> float:
    log_probs, labels = prediction.log_mean_probs, _labels_of(prediction)
    gaps = log_probs - log_probs.gather(-1, labels.unsqueeze(-1))  # (example, class), z_c - z_label
    there = _of_options(gaps)
    if (there.amax(-1) - there.amin(-1)).max() <= _FLAT:
        return 1.0
    if (gaps <= 0).all():
        warnings.warn(
            f"all of the {len(labels)} rows that a temperature was to be fitted to are predicted right, which says "
            "nothing about how sure to be: it stays 1. Hold out more rows.",
            stacklevel=2,
        )
        return 1.0
    if _slope(gaps, LEAST_TEMPERATURE) <= 0:
        return LEAST_TEMPERATURE
    if _slope(gaps, MOST_TEMPERATURE) >= 0:
        return MOST_TEMPERATURE
    low, high = math.log(LEAST_TEMPERATURE), math.log(MOST_TEMPERATURE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # Too sure at this T: the optimum is above it.
        low, high = (middle, high) if _slope(gaps, math.exp(middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def _slope(gaps: Tensor, temperature: float) -> float:
    """d NLL / d(1/T), the mean over rows; falls as T grows."""
    return float(((gaps / temperature).softmax(-1) * _of_options(gaps)).sum(-1).mean())


def _of_options(gaps: Tensor) -> Tensor:
    """With 0 in place of -inf, for options that a row lacks."""
    return gaps.masked_fill(gaps.isneginf(), 0.0)


def _labels_of(prediction: Prediction) -> Tensor:
    labels = known_labels(prediction.labels)
    if not len(labels):
        raise DataError("there are no rows to fit a temperature to. Pass the prediction of at least one labelled row.")
    require_class_ids(labels, prediction.logits.shape[-1], DataError, "Correct the labels.")
    if not all_numbers(prediction.logits):
        raise DataError(
            "some logits are NaN or infinite, so no temperature means anything. Look at the fit: its loss or weights "
            "are NaN as well."
        )
    return labels
