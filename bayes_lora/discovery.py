"""What the modules of a package define, found by importing them: a new file is all that a new method or guide takes."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

_T = TypeVar("_T")


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    """The modules of a package, imported, in alphabetical order; packages inside it are not entered."""
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        if not found.ispkg:
            yield importlib.import_module(f"{package.__name__}.{found.name}")


def classes_of(package: ModuleType, base: type[_T]) -> list[type[_T]]:
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
