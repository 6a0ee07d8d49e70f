"""Likelihoods by the kind that files have them under."""

from functools import cache

from bayes_lora.discovery import classes_of
from bayes_lora.models import likelihoods
from bayes_lora.models.likelihoods.likelihood import Likelihood


@cache
def likelihood_kinds() -> dict[str, type[Likelihood]]:
    """Every likelihood that a module of this package defines."""
    return {found.kind: found for found in classes_of(likelihoods, Likelihood)}  # type: ignore[type-abstract]
