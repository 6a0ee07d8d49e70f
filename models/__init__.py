"""Pyro models: priors over the adapters, likelihoods, the network between them."""

from bayes_lora.models.bayesian_lora import BayesianLoRA
from bayes_lora.models.likelihoods.classification import Classification
from bayes_lora.models.likelihoods.gaussian_regression import GaussianRegression
from bayes_lora.models.likelihoods.likelihood import Likelihood, network_logits

__all__ = ["BayesianLoRA", "Classification", "GaussianRegression", "Likelihood", "network_logits"]
