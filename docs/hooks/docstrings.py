"""Griffe's extension: the section that our docstrings call "Example:" is the one that it knows as "Examples:"."""

import re
from typing import Any

import griffe


class OneExample(griffe.Extension):  # type: ignore[misc]
    """Renames the section as docstrings are read, so that its code is shown as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
