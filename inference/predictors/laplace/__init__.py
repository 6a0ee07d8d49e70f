"""Laplace-LoRA: a Gaussian posterior around a trained point estimate, from the curvature of its loss.

posterior = fit_laplace(network, train_loader, LaplaceOptions(parameters="all", max_rank=64))
posterior = tune_prior_precision(posterior)
prediction = LaplacePredictor(network, posterior)(test_loader, num_samples=32, seed=0)
"""

from bayes_lora.inference.predictors.laplace.laplace import LaplaceOptions, LaplacePosterior, fit_laplace
from bayes_lora.inference.predictors.laplace.predictive import LaplacePredictor
from bayes_lora.inference.predictors.laplace.storage import load_laplace, save_laplace
from bayes_lora.inference.predictors.laplace.tuning import (
    held_out_nll,
    tune_prior_precision,
    tune_prior_precision_held_out,
)

__all__ = [
    "LaplaceOptions",
    "LaplacePosterior",
    "LaplacePredictor",
    "fit_laplace",
    "held_out_nll",
    "load_laplace",
    "save_laplace",
    "tune_prior_precision",
    "tune_prior_precision_held_out",
]
