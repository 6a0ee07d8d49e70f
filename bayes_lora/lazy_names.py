"""Names of a package that are imported when they are first asked for."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names stand, as imports, in the stub beside its file.

    Type checkers read the same stub, so that each name and its module are written once.

    Args:
        package: its `__name__`.
        file: its `__file__`.
    """
    module_of = {
        alias.name: str(node.module)
        for node in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)  # not asked for again
        return value

    return load, lambda: sorted({*vars(sys.modules[package]), *module_of}), sorted(module_of)
