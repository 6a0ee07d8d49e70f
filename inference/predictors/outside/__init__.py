"""What tells rows from elsewhere without a posterior: energy, and distances of what the classification head reads.

Each is a `Predictor` whose predictions are those of a network at one point, with a score of how foreign each row is.
"""

from bayes_lora.inference.predictors.outside.energy import EnergyScore
from bayes_lora.inference.predictors.outside.mahalanobis import MahalanobisDistance
from bayes_lora.inference.predictors.outside.nearest_neighbours import NearestNeighbours

__all__ = ["EnergyScore", "MahalanobisDistance", "NearestNeighbours"]
