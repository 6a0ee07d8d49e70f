"""Pyro models: priors over the adapters, likelihoods, the network between them."""

from bayes_lora.models.bayesian_lora import BayesianLoRA
from bayes_lora.models.likelihood import Classification, Likelihood, network_logits

__all__ = ["BayesianLoRA", "Classification", "Likelihood", "network_logits"]
