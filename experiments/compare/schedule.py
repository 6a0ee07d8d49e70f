"""Which jobs of a study may be done side by side."""

from collections.abc import Sequence

from bayes_lora.experiments.compare.methods import Method

Chain = tuple[int, list[Method]]
"""A seed, and methods that are done one after the other, since one finds what another has trained."""

_POINT = Method("map")


def stages(jobs: Sequence[tuple[Method, int]]) -> list[list[Chain]]:
    """Chains, none of which needs what another one of its stage makes.

    The first stage has the point estimates that other jobs start from, whether they are asked for or not.
    """
    first = dict.fromkeys(seed for method, seed in jobs if method.starts_from_point)
    chains: dict[tuple[int, Method], Chain] = {}
    for method, seed in jobs:
        if method != _POINT:
            chains.setdefault((seed, method.training), (seed, []))[1].append(method)
    return [[(seed, [_POINT]) for seed in first], list(chains.values())]
