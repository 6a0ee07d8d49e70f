"""Finding what stands in the files of a package, so that a new file is all it takes to add to it."""

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import TypeVar

_T = TypeVar("_T")


def modules_of(package: str) -> Iterator[ModuleType]:
    """Every module of a package, imported, in alphabetical order; packages inside of it are left out.

    Example:
        >>> [module.__name__ for module in modules_of("bayes_lora.distributions")][-1]
        'bayes_lora.distributions.wishart'
    """
    for found in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        if not found.ispkg:
            yield import_module(found.name)


def classes_of(package: str, base: type[_T]) -> list[type[_T]]:
    """The concrete subclasses of `base` that the modules of a package define, in the order in which they stand."""
    return [
        found
        for module in modules_of(package)
        for found in vars(module).values()
        if inspect.isclass(found)
        and issubclass(found, base)
        and not inspect.isabstract(found)
        and found.__module__ == module.__name__
    ]
