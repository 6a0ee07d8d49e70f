from bayes_lora.inference.diagnostics.inference_data import to_inference_data
from bayes_lora.inference.diagnostics.inference_data_files import load_inference_data, save_inference_data
from bayes_lora.inference.finetuning.lora import LoRAOptions, add_lora
from bayes_lora.inference.finetuning.scalabl import ScalaBL, ScalaBLPredictor
from bayes_lora.inference.generation.answers import Agreement, Answers, generate_answers
from bayes_lora.inference.generation.generate import generate
from bayes_lora.inference.generation.generated import Generation
from bayes_lora.inference.generation.parsing import AnswerParser
from bayes_lora.inference.generation.sampling import Sampling
from bayes_lora.inference.generation.score_table import write_scores
from bayes_lora.inference.generation.semantic_entropy import (
    by_embedding,
    by_relation,
    discrete_semantic_entropy,
    semantic_entropy,
)
from bayes_lora.inference.guides.autoguides import AutoAdapterGuide, autoguide
from bayes_lora.inference.guides.lora_guide import LoRAGuide
from bayes_lora.inference.guides.mean_field import MeanFieldGuide
from bayes_lora.inference.guides.monteclora import MonteCLoRAGuide
from bayes_lora.inference.predictors.base_rate import BaseRate
from bayes_lora.inference.predictors.ensemble import Ensemble, checkpoint_states, read_state, trainable_state
from bayes_lora.inference.predictors.ivon import IVONPosterior, IVONPredictor
from bayes_lora.inference.predictors.laplace import (
    LaplaceOptions,
    LaplacePosterior,
    LaplacePredictor,
    fit_laplace,
    load_laplace,
    save_laplace,
    tune_prior_precision,
)
from bayes_lora.inference.predictors.last_layer import VBLLOptions, VBLLPosterior, VBLLPredictor, fit_vbll
from bayes_lora.inference.predictors.mc_dropout import MCDropout
from bayes_lora.inference.predictors.mixture import Mixture
from bayes_lora.inference.predictors.outside import EnergyScore, MahalanobisDistance, NearestNeighbours
from bayes_lora.inference.predictors.point_estimate import PointEstimate
from bayes_lora.inference.predictors.predictive import predict
from bayes_lora.inference.predictors.predictor import Predictor
from bayes_lora.inference.predictors.scale_calibration import ScaleCalibration, calibrate_scale
from bayes_lora.inference.predictors.swag import SWAG, SWAGPredictor
from bayes_lora.inference.predictors.swag_collector import SWAGCollector
from bayes_lora.inference.predictors.temperature import TemperatureScaled, fit_temperature
from bayes_lora.inference.predictors.tfb import TFB, TFBPredictor, TFBSearch, tune_tfb
from bayes_lora.inference.storage.hub import push_to_hub
from bayes_lora.inference.storage.model_card import CardFacts
from bayes_lora.inference.storage.posteriors import load_posterior, save_posterior
from bayes_lora.inference.training.fit import FitResult, fit, fit_network
from bayes_lora.inference.training.fit_options import FitOptions
from bayes_lora.inference.training.itemized_elbo import ItemizedELBO
from bayes_lora.inference.training.ivon import IVONOptions, IVONTraining
from bayes_lora.inference.training.scale_schedule import SampleScaleSchedule
from bayes_lora.inference.training.trainer import SVITrainer
from bayes_lora.metrics.bootstrap import mean_difference, metric_difference, one_by_one
from bayes_lora.metrics.classification import all_metrics, evaluate, example_losses
from bayes_lora.metrics.contrast import Contrast
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.metrics.uncertainty import out_of_distribution_auroc, risk_coverage_curve, uncertainty_scores

__all__ = [
    "SWAG",
    "TFB",
    "Agreement",
    "AnswerParser",
    "Answers",
    "AutoAdapterGuide",
    "BaseRate",
    "CardFacts",
    "Contrast",
    "EnergyScore",
    "Ensemble",
    "FitOptions",
    "FitResult",
    "Generation",
    "IVONOptions",
    "IVONPosterior",
    "IVONPredictor",
    "IVONTraining",
    "ItemizedELBO",
    "LaplaceOptions",
    "LaplacePosterior",
    "LaplacePredictor",
    "LoRAGuide",
    "LoRAOptions",
    "MCDropout",
    "MahalanobisDistance",
    "MeanFieldGuide",
    "Mixture",
    "MonteCLoRAGuide",
    "NearestNeighbours",
    "PointEstimate",
    "Prediction",
    "Predictor",
    "SVITrainer",
    "SWAGCollector",
    "SWAGPredictor",
    "SampleScaleSchedule",
    "Sampling",
    "ScalaBL",
    "ScalaBLPredictor",
    "ScaleCalibration",
    "TFBPredictor",
    "TFBSearch",
    "TemperatureScaled",
    "VBLLOptions",
    "VBLLPosterior",
    "VBLLPredictor",
    "add_lora",
    "all_metrics",
    "autoguide",
    "by_embedding",
    "by_relation",
    "calibrate_scale",
    "checkpoint_states",
    "discrete_semantic_entropy",
    "evaluate",
    "example_losses",
    "fit",
    "fit_laplace",
    "fit_network",
    "fit_temperature",
    "fit_vbll",
    "generate",
    "generate_answers",
    "load_inference_data",
    "load_laplace",
    "load_posterior",
    "mean_difference",
    "metric_difference",
    "one_by_one",
    "out_of_distribution_auroc",
    "predict",
    "push_to_hub",
    "read_state",
    "risk_coverage_curve",
    "save_inference_data",
    "save_laplace",
    "save_posterior",
    "semantic_entropy",
    "to_inference_data",
    "trainable_state",
    "tune_prior_precision",
    "tune_tfb",
    "uncertainty_scores",
    "write_scores",
]
