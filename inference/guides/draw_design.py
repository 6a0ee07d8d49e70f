"""Draws by design: which noise each draw of a prediction has."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bayes_lora.checks import require_choice
from bayes_lora.choices import GAUSSIAN_DESIGNS, Draws
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.guides.lora_guide import LoRAGuide
from bayes_lora.inference.guides.posterior_draw import posterior_draw
from bayes_lora.models import BayesianLoRA

# How the draws of a block are made of its directions: a row for each draw, whose squares sum to 1, so that of
# independent Gaussian directions it is one more; a column for each direction. The first draw is the first direction.
_WEIGHTS: Mapping[Draws, Sequence[tuple[float, ...]]] = {
    "tetrahedral": (
        (1.0, 0.0, 0.0),
        (-1 / 3, math.sqrt(8 / 9), 0.0),
        (-1 / 3, -math.sqrt(2 / 9), math.sqrt(2 / 3)),
        (-1 / 3, -math.sqrt(2 / 9), -math.sqrt(2 / 3)),
    ),
    "antithetic": ((1.0,), (-1.0,)),
    "independent": ((1.0,),),
}


@dataclass(frozen=True)
class Source:
    """Where the noise of one draw comes from.

    Attributes:
        block: number of the first draw of its block, and of the stream of random numbers that the block's mixture
            weights, covariances and first direction are read from; of direction d it is ``block + d``.
        weights: of the directions, which are summed. Only the last that are not 0 are left out.
    """

    block: int
    weights: tuple[float, ...]


def source(draws: Draws, index: int) -> Source:
    """Of draw number `index`, whatever the number of draws.

    Independent draws have a stream each. The draws of a block have the mixture weights and covariances in common, and
    noise about the guide's centre that sums to 0, as far apart as that allows: in an antithetic pair z and -z, in a
    block of four the corners of a regular tetrahedron in three independent directions,

        z_j = sum_d V_jd Z_d,      V V' = (4 I - 1 1') / 3.

    Each draw alone has the distribution of an independent one where, given all else, the noise is symmetric about the
    centre (pairs) or Gaussian (tetrahedra). Of a function of it, g(z) = g(0) + g' z + z' g'' z / 2 + ..., what is
    linear cancels in the mean over a block, and a predictive is nearly linear in noise of the usual size. What is
    quadratic is a mean over as many squares as there are directions: in four draws two by pairs, three by a
    tetrahedron. Where g is far from linear, a block is worth its draws as long as these do not move together.

    Source: Hammersley and Morton 1956, A New Monte Carlo Technique: Antithetic Variates; for the tetrahedron, the
    simplex sigma points of Julier and Uhlmann 2002, Reduced Sigma Point Filters, turned at random.

    Example:
        >>> source("antithetic", 3)
        Source(block=2, weights=(-1.0,))
    """
    rows = _WEIGHTS[draws]
    weights = list(rows[index % len(rows)])
    while weights[-1] == 0:
        weights.pop()
    return Source(index - index % len(rows), tuple(weights))


def block_size(draws: Draws) -> int:
    """Draws of a block: two blocks are independent, two draws of one are not."""
    return len(_WEIGHTS[draws])


def choose_design(
    draws: Draws | None,
    num_samples: int | Literal["auto"],
    *,
    designs: Sequence[Draws] = GAUSSIAN_DESIGNS,
    fewest_blocks: int = 1,
) -> Draws:
    """How `num_samples` draws belong together: as asked for, or as serves best.

    That is the first of `designs` of which they make `fewest_blocks` blocks or more, and no part of one; or else, as
    with "auto", which begins with two, pairs where these are among the designs.

    Raises:
        ConfigurationError: there is no such design.
    """
    if draws is not None:
        require_choice("draws", draws, get_args(Draws))
        return draws
    for design in designs:
        size = block_size(design)
        if size == 2 or (num_samples != "auto" and num_samples % size == 0 and num_samples >= fewest_blocks * size):
            return design
    return "independent"


def design_of(
    guide: Callable[..., Any], draws: Draws | None, num_samples: int | Literal["auto"], *, fewest_blocks: int = 1
) -> Draws:
    """As `choose_design`, of draws of a guide.

    Raises:
        ConfigurationError: there is no such design, or the guide does not say that its draws are exact under it.
    """
    designs = guide.designs if isinstance(guide, LoRAGuide) else ("independent",)
    found = choose_design(draws, num_samples, designs=designs, fewest_blocks=fewest_blocks)
    if found not in designs:
        shape = {"antithetic": "symmetric", "tetrahedral": "Gaussian"}[found]
        raise ConfigurationError(
            f"draws={found!r} combines the noise of draws, and {type(guide).__name__} does not say that its noise is "
            f"{shape}. Use draws='independent'; or, if it is, a LoRAGuide whose `designs` name {found!r}."
        )
    return found


@torch.no_grad()
def designed_noises(
    model: BayesianLoRA, guide: Callable[..., Any], design: Draws, seed: int, draws: Iterable[int]
) -> Iterator[list[Tensor]]:
    """What each draw adds to mu, as `BayesianLoRA.perturbations` gives it, one after the other.

    The guide is asked once for each direction of a block, if the draws of a block follow on each other.

    Args:
        model: the model.
        guide: its guide, a `LoRAGuide` whose `designs` name this one, or any callable for independent draws.
        design: of the draws.
        seed: of all draws.
        draws: their numbers.
    """
    block, directions, given = -1, list[list[Tensor]](), dict[str, Tensor]()
    for draw in draws:
        of = source(design, draw)
        if of.block != block:
            block, first = of.block, posterior_draw(model, guide, seed, of.block)
            directions = [model.perturbations(first.latents)]
            given = {site: first.value(site) for site in model.sites.shaping_sites}
        for index in range(block + len(directions), block + len(of.weights)):
            drawn = posterior_draw(model, guide, seed, index, given=given)
            directions.append(model.perturbations(drawn.latents))
        if of.weights == (1.0,):
            yield directions[0]
        else:
            combining: Any = guide
            yield combining.combined(directions[: len(of.weights)], of.weights)


def draws_text(num_samples: int | Literal["auto"] | None) -> str:
    """A number of draws, in words; None is one that nobody said.

    Example:
        >>> draws_text(1)
        '1 draw'
    """
    if num_samples == "auto":
        return "as many draws as it takes"
    if num_samples is None:
        return "draws"
    return f"{num_samples} draw" + ("s" if num_samples != 1 else "")
