"""Which jobs of a study may be done side by side."""

from collections.abc import Sequence

from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.point_estimate import POINT_ESTIMATE

Chain = tuple[int, list[Method]]
"""A seed, and methods that are done one after the other, since one finds what another has trained."""


def stages(jobs: Sequence[tuple[Method, int]]) -> list[list[Chain]]:
    """Chains, none of which needs what another one of its stage makes.

    The first stage has the point estimates that other jobs start from, whether they are asked for or not.
    """
    first = dict.fromkeys(seed for method, seed in jobs if method.spec.needs == "point")
    chains: dict[tuple[int, Method], Chain] = {}
    for method, seed in jobs:
        if method != POINT_ESTIMATE:
            chains.setdefault((seed, method.training), (seed, []))[1].append(method)
    return [[(seed, [POINT_ESTIMATE]) for seed in first], list(chains.values())]


def with_bases(methods: Sequence[Method]) -> list[Method]:
    """The methods whose predictions must be made: a temperature is applied to stored ones."""
    return list(dict.fromkeys(method.untempered for method in methods))
