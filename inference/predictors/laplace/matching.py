"""Whether a posterior belongs to a network: the same Linears, of the same sizes, at the same weights."""

import math

from torch import nn

from bayes_lora.errors import PosteriorFileError
from bayes_lora.inference.predictors.laplace.laplace import LaplacePosterior
from bayes_lora.inference.predictors.laplace.linears import NamedLinear, select_linears
from bayes_lora.inference.predictors.laplace.option_logits import peft_model

_SAME_NORM = 1e-6  # relative: sums of the same values in another order differ by less


def match_linears(network: nn.Module, posterior: LaplacePosterior) -> tuple[NamedLinear, ...]:
    """The Linears of `network` that the posterior is about, in the order of its blocks.

    Raises:
        PosteriorFileError: they have other names or sizes, or the weights have changed since the fit.
        AdapterError: the network has no such Linears, or its adapters are merged or disabled.
    """
    inner = peft_model(network, posterior.options.parameters)
    linears = select_linears(inner, posterior.options.parameters, posterior.options.head)
    expected = {name: block.shape for name, block in posterior.blocks.items()}
    found = {linear.name: linear.shape for linear in linears}
    if list(found.items()) != list(expected.items()):
        differing = sorted(set(expected.items()) ^ set(found.items()))[:4]
        raise PosteriorFileError(
            f"the Laplace posterior does not fit this {type(inner).__name__}: they differ in {differing}. Load the "
            "network and the adapter that it was fitted on."
        )
    for linear in linears:
        norm = posterior.squared_norms[linear.name]
        if not math.isclose(linear.squared_norm(), norm, rel_tol=_SAME_NORM, abs_tol=1e-300):
            raise PosteriorFileError(
                f"{linear.name} has other weights than those that the Laplace posterior was fitted at (squared norm "
                f"{linear.squared_norm():.6g}, then {norm:.6g}). Load those, or fit again: fit_laplace(network, ...)."
            )
    return linears
