"""Inference: the guide, objectives, training, the posterior predictive, saving and loading."""

from bayes_lora.inference.fit_options import FitOptions
from bayes_lora.inference.guide import MonteCLoRAGuide
from bayes_lora.inference.hub import push_to_hub
from bayes_lora.inference.metrics import evaluate
from bayes_lora.inference.model_card import CardFacts
from bayes_lora.inference.objective import ItemizedELBO
from bayes_lora.inference.prediction import Prediction
from bayes_lora.inference.predictive import predict
from bayes_lora.inference.predictor import Predictor
from bayes_lora.inference.scale_schedule import SampleScaleSchedule
from bayes_lora.inference.storage import load_posterior, save_posterior
from bayes_lora.inference.trainer import SVITrainer
from bayes_lora.inference.training import FitResult, fit, fit_network

__all__ = [
    "CardFacts",
    "FitOptions",
    "FitResult",
    "ItemizedELBO",
    "MonteCLoRAGuide",
    "Prediction",
    "Predictor",
    "SVITrainer",
    "SampleScaleSchedule",
    "evaluate",
    "fit",
    "fit_network",
    "load_posterior",
    "predict",
    "push_to_hub",
    "save_posterior",
]
