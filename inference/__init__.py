"""Inference: the guide, objectives, training, the posterior predictive, and the methods it is compared with."""

from bayes_lora.inference.autoguides import AutoAdapterGuide, autoguide
from bayes_lora.inference.base_rate import BaseRate
from bayes_lora.inference.bootstrap import mean_difference, metric_difference, one_by_one
from bayes_lora.inference.calibration import ScaleCalibration, calibrate_scale
from bayes_lora.inference.ensemble import Ensemble, checkpoint_states, read_state, trainable_state
from bayes_lora.inference.fit_options import FitOptions
from bayes_lora.inference.guide import MonteCLoRAGuide
from bayes_lora.inference.hub import push_to_hub
from bayes_lora.inference.inference_data import to_inference_data
from bayes_lora.inference.inference_data_files import load_inference_data, save_inference_data
from bayes_lora.inference.laplace import (
    LaplaceOptions,
    LaplacePosterior,
    LaplacePredictor,
    fit_laplace,
    load_laplace,
    save_laplace,
    tune_prior_precision,
)
from bayes_lora.inference.mc_dropout import MCDropout
from bayes_lora.inference.mean_field import MeanFieldGuide
from bayes_lora.inference.metrics import all_metrics, evaluate
from bayes_lora.inference.model_card import CardFacts
from bayes_lora.inference.objective import ItemizedELBO
from bayes_lora.inference.point_estimate import PointEstimate
from bayes_lora.inference.prediction import Prediction
from bayes_lora.inference.predictive import predict
from bayes_lora.inference.predictor import Predictor
from bayes_lora.inference.scale_schedule import SampleScaleSchedule
from bayes_lora.inference.storage import load_posterior, save_posterior
from bayes_lora.inference.swag import SWAG, SWAGPredictor
from bayes_lora.inference.swag_collector import SWAGCollector
from bayes_lora.inference.temperature import TemperatureScaled, fit_temperature
from bayes_lora.inference.trainer import SVITrainer
from bayes_lora.inference.training import FitResult, fit, fit_network

__all__ = [
    "SWAG",
    "AutoAdapterGuide",
    "BaseRate",
    "CardFacts",
    "Ensemble",
    "FitOptions",
    "FitResult",
    "ItemizedELBO",
    "LaplaceOptions",
    "LaplacePosterior",
    "LaplacePredictor",
    "MCDropout",
    "MeanFieldGuide",
    "MonteCLoRAGuide",
    "PointEstimate",
    "Prediction",
    "Predictor",
    "SVITrainer",
    "SWAGCollector",
    "SWAGPredictor",
    "SampleScaleSchedule",
    "ScaleCalibration",
    "TemperatureScaled",
    "all_metrics",
    "autoguide",
    "calibrate_scale",
    "checkpoint_states",
    "evaluate",
    "fit",
    "fit_laplace",
    "fit_network",
    "fit_temperature",
    "load_inference_data",
    "load_laplace",
    "load_posterior",
    "mean_difference",
    "metric_difference",
    "one_by_one",
    "predict",
    "push_to_hub",
    "read_state",
    "save_inference_data",
    "save_laplace",
    "save_posterior",
    "to_inference_data",
    "trainable_state",
    "tune_prior_precision",
]
