"""Names of modules and parameters as they were before PEFT."""

import re

# What PEFT puts into the name of a module or parameter that was there before it.
_OF_PEFT = re.compile(
    r"^base_model\.model\.|\.token_adapter\b|\.base_layer\b|\.original_module\b|\.modules_to_save\.[^.]+"
)


def plain_name(path: str) -> str:
    """The path of a module or parameter without PEFT's wrapping.

    Example:
        >>> plain_name("base_model.model.classifier.modules_to_save.default.weight")
        'classifier.weight'
    """
    return _OF_PEFT.sub("", path)
