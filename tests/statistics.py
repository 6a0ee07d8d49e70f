"""Comparing samples with expectations: every tolerance is a number of standard errors."""

import math

import torch
from torch import Tensor


def deviation(draws: Tensor, expected: Tensor | float) -> Tensor:
    """(mean over the first dimension of `draws` - expected), in standard errors of the mean; draws are independent."""
    error = draws.std(0) / math.sqrt(len(draws))
    return (draws.mean(0) - expected) / error


def assert_mean(draws: Tensor, expected: Tensor | float) -> None:
    """Every mean over the first dimension lies within 4 standard errors of what is expected."""
    worst = deviation(draws, expected).abs().max()
    assert worst < 4, f"{worst:.1f} standard errors off: {draws.mean(0)} instead of {expected}"


def assert_same_mean(first: Tensor, second: Tensor) -> None:
    """The means over the first dimension of two independent samples differ by less than 4 standard errors."""
    error = torch.sqrt(first.var(0) / len(first) + second.var(0) / len(second))
    assert ((first.mean(0) - second.mean(0)) / error).abs().max() < 4
