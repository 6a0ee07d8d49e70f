"""Checks of options and labels: each returns nothing, or raises an error that names what it saw and what may be."""

import math
from typing import TYPE_CHECKING, Any

from bayes_lora.errors import BayesLoRAError, ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor


def require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in allowed:
        raise ConfigurationError(f"{name}={value!r} is none of {', '.join(map(repr, allowed))}.")


def require_count(name: str, value: object) -> None:
    """An integer >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name}={value!r} must be an integer >= 1.")


def require_positive(name: str, value: Any, hint: str = "a number > 0") -> None:
    """A finite number > 0."""
    if not _is_number(value) or value <= 0:
        raise ConfigurationError(f"{name}={value!r} must be positive and finite ({hint}).")


def require_non_negative(name: str, value: Any) -> None:
    """A finite number >= 0."""
    if not _is_number(value) or value < 0:
        raise ConfigurationError(f"{name}={value!r} must be a finite number >= 0.")


def require_fraction(name: str, value: Any) -> None:
    """A number between 0 and 1, both included."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ConfigurationError(f"{name}={value!r} must lie between 0 and 1.")


def require_seed(name: str, value: Any) -> None:
    """An integer that every generator takes: 0 <= seed < 2^32."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise ConfigurationError(f"{name}={value!r} must be an integer from 0 to 2^32 - 1.")


def require_class_ids(labels: "Tensor", num_classes: int, error: type[BayesLoRAError], remedy: str) -> None:
    """Labels (example,), as many as there may be, from 0 to num_classes - 1.

    Args:
        labels: the labels.
        num_classes: of the network, or of the predictions.
        error: what is raised where they are not.
        remedy: what to do then; ``{needed}`` in it is the number of classes that the labels would need.
    """
    if not labels.numel():
        return
    least, most = (bound.item() for bound in labels.aminmax())
    if not 0 <= least <= most < num_classes:
        raise error(
            f"labels run from {least} to {most}, but there are {num_classes} classes, 0 to {num_classes - 1}. "
            + remedy.format(needed=int(most) + 1)
        )


def all_numbers(logits: "Tensor") -> bool:
    """Whether there is nothing but numbers, and -inf for what cannot be: an option that a row lacks."""
    return not bool((logits.isnan() | logits.isposinf()).any())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
