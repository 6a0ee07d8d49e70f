"""Rows from elsewhere told by something else than probabilities, for methods that are one network."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.cost import Measured
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.inference import EnergyScore, MahalanobisDistance, NearestNeighbours, Predictor
from bayes_lora.inference.predictors.predictor import NetworkPredictor

# By the name of the suffix; of a predictor, and the rows that its network was trained on.
_WAYS: Mapping[str, Callable[[NetworkPredictor, Any], Predictor]] = {
    "energy": lambda predictor, rows: EnergyScore(predictor),
    "mahalanobis": MahalanobisDistance.fit,
    "neighbours": NearestNeighbours.fit,
}


def told_by(name: str, fitting: Fitting, fitted: Fitted) -> Fitted:
    """A method that is ready to predict, with the score that a suffix names; what it costs is in its cost."""
    if not isinstance(fitted.predictor, NetworkPredictor):
        raise ConfigurationError(f"+{name} asks one network about each row, and the method has none. Drop it.")
    with Measured() as measuring, fitting.precision():
        predictor = _WAYS[name](fitted.predictor, fitting.fit.loader())
    return replace(fitted, predictor=predictor, cost=fitted.cost + measuring.cost)
