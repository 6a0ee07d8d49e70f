"""The methods by name: each module here declares some in `SPECS`, and to add one is to add a module."""

import sys
from collections.abc import Mapping

from bayes_lora.discovery import modules_of
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.method_names import read_methods
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec


def find_methods() -> dict[str, MethodSpec]:
    """From every module here: what needs nothing first, then what starts from the point estimate, then the others.

    Raises:
        ConfigurationError: a module declares no method, or one of a name that another has.
    """
    specs: dict[str, MethodSpec] = {}
    for module in modules_of(sys.modules[__name__]):
        declared = getattr(module, "SPECS", ())
        if not declared:
            raise ConfigurationError(f"{module.__name__} declares no method. Write SPECS = (MethodSpec(...),) there.")
        for spec in declared:
            if spec.name in specs:
                raise ConfigurationError(f"{module.__name__}: a method {spec.name!r} exists. Choose another name.")
            specs[spec.name] = spec
    order = ("nothing", "point", "own")
    return {spec.name: spec for spec in sorted(specs.values(), key=lambda spec: order.index(spec.needs))}


METHODS: Mapping[str, MethodSpec] = find_methods()


def parse_methods(text: str) -> list[Method]:
    """Methods: ``name`` or ``name[option=value,...]``, with ``+calibrated``, ``+mean`` or ``+temperature`` after it.

    Separated by commas outside of brackets; one that is there twice counts once, in whatever order its options are.

    Raises:
        ConfigurationError: an unknown name, option or suffix, or one that does not belong to the method.

    Example:
        >>> [method.label for method in parse_methods("map, monteclora[sample_scale=0.05]+temperature")]
        ['map', 'monteclora[sample_scale=0.05]+temperature']
    """
    return read_methods(text, METHODS)
