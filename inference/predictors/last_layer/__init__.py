"""Posteriors over the last layer alone, of hidden states that stay as they are."""

from bayes_lora.inference.predictors.last_layer.vbll import VBLLOptions, VBLLPosterior, VBLLPredictor, fit_vbll

__all__ = ["VBLLOptions", "VBLLPosterior", "VBLLPredictor", "fit_vbll"]
