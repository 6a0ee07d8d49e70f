"""Pyro models: priors over the adapters, likelihoods, the network between them."""

from bayes_lora.models.bayesian_lora import BayesianLoRA
from bayes_lora.models.likelihood_network import LikelihoodNetwork
from bayes_lora.models.likelihoods.causal_language_model import CausalLanguageModel
from bayes_lora.models.likelihoods.classification import Classification
from bayes_lora.models.likelihoods.gaussian_regression import GaussianRegression
from bayes_lora.models.likelihoods.generated_choice import GeneratedChoice
from bayes_lora.models.likelihoods.likelihood import Likelihood, network_logits
from bayes_lora.models.likelihoods.multi_label import MultiLabel
from bayes_lora.models.likelihoods.multiple_choice import MultipleChoice
from bayes_lora.models.likelihoods.ordinal import Ordinal
from bayes_lora.models.likelihoods.student_t_regression import StudentTRegression
from bayes_lora.models.likelihoods.token_classification import TokenClassification
from bayes_lora.models.trained_module import TrainedModule

__all__ = [
    "BayesianLoRA",
    "CausalLanguageModel",
    "Classification",
    "GaussianRegression",
    "GeneratedChoice",
    "Likelihood",
    "LikelihoodNetwork",
    "MultiLabel",
    "MultipleChoice",
    "Ordinal",
    "StudentTRegression",
    "TokenClassification",
    "TrainedModule",
    "network_logits",
]
