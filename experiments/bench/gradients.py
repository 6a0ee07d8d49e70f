"""How much a stochastic gradient varies from draw to draw, and what a draw of it takes: samplers and KLs compared."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bayes_lora.choices import Draws
from bayes_lora.experiments.bench.cases import Case, lora_network, make_batch
from bayes_lora.experiments.bench.contenders import Entrant, posterior
from bayes_lora.experiments.bench.results import Record
from bayes_lora.experiments.bench.timing import Estimate, median_interval, ratio_interval, synchronize
from bayes_lora.inference import ItemizedELBO
from bayes_lora.randomness import seeded

Floats = npt.NDArray[np.float64]

# What a gradient is by, and what the names of those parameters have in common: log v and log alpha, as the optimizer
# sees them, and the LoRA-A weights.
PARAMETERS = {"v": "scale_r", "alpha": "concentration", "mu": "lora_A"}
_PARTICLES: Mapping[str, Draws] = {"two": "independent", "pair": "antithetic"}
LORA_B_STD = 0.02  # at PEFT's 0 the likelihood would say nothing about A
_SEED = 0
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Objective:
    """An objective, how much its KL weighs, and over which samplers it goes.

    Attributes:
        name: "paper" or "elbo".
        weight: the option that weighs the KL, with its value.
        samplers: those it exists for.
        components: N.
    """

    name: str
    weight: tuple[str, float]
    samplers: tuple[str, ...]
    components: int


def objectives(*components: int) -> list[Objective]:
    """Each objective with the default weight of its KL, and with one at which the KL is about as large as the NLL.

    How large it is there is measured, too (quantity "kl_share"). The sampler of "elbo" does not see N: one is enough.
    """
    paper = [
        Objective("paper", ("kl_weight", weight), ("collapsed", "explicit"), n)
        for weight in (1e-5, 0.03)
        for n in components
    ]
    return paper + [Objective("elbo", ("kl_temperature", t), ("collapsed",), components[0]) for t in (1.0, 0.005)]


@dataclass(frozen=True)
class Gradient:
    """One draw of the gradient of a loss.

    Attributes:
        seconds: that loss and backward pass took.
        by: {parameter: its gradient, flat}.
        kl_share: the KL of the loss in units of the NLL.
    """

    seconds: float
    by: dict[str, Tensor]
    kl_share: float


@dataclass(frozen=True)
class DrawnGradients:
    """Many of them.

    Attributes:
        seconds: (draw,).
        distances: {parameter: (draw,)}, squared distances of the draws to their mean.
        kl_shares: (draw,).
    """

    seconds: list[float]
    distances: dict[str, Floats]
    kl_shares: list[float]

    @classmethod
    def of(cls, gradients: list[Gradient]) -> "DrawnGradients":
        """What is kept of some gradients."""
        distances = {}
        for parameter in PARAMETERS:
            drawn = torch.stack([gradient.by[parameter] for gradient in gradients]).double()
            distances[parameter] = (drawn - drawn.mean(0)).square().sum(-1).cpu().numpy()
        return cls([g.seconds for g in gradients], distances, [g.kl_share for g in gradients])


def gradient_noise(
    case: Case, asked: Objective, num_draws: int, *, seed: int = 0, on_draw: Callable[[], None] = lambda: None
) -> list[Record]:
    """Variance and time of gradients with every sampler of an objective, its KL sampled and expected.

    One batch, one point, no dropout: what varies is the posterior's own noise. "two" and "pair" are means over two
    draws, independent or antithetic. The ways take turns, in an order drawn
    anew for each draw, and all have the same seed in it. The variance of a gradient is the trace of its covariance.
    Averaging n draws divides it by n and takes n times as long, so that the best way has the least variance x time.

    Args:
        case: network and batch.
        asked: the objective.
        num_draws: K, of each way; at least 3.
        seed: of the orders.
        on_draw: called after each draw, for progress bars.

    Returns:
        For each way the records "gradient" (seconds), "kl_share", and for v, alpha and mu "variance_..." and "cost_..."
        (variance x time), with ratios to the collapsed sampler and the sampled KL.
    """
    ways: dict[Entrant, Callable[[int], Gradient]] = {}
    option, value = asked.weight
    for sampler in asked.samplers:
        for kl in ("sampled", "expected"):
            name = "_".join([asked.name, *(part for part in (sampler, kl) if part in ("explicit", "expected"))])
            label = f"bayes_lora, {asked.name}, {sampler}, {kl} KL, N = {asked.components}"
            entrant = Entrant(f"{name}_n{asked.components}", label, ours=True)
            config = {"objective": asked.name, "sampler": sampler, "normal_kl": kl, option: value}
            ways[entrant] = gradients(case, asked.components, ItemizedELBO(), **config)
            if sampler == "collapsed":
                for particles, draws in _PARTICLES.items():
                    two = Entrant(f"{name}_{particles}_n{asked.components}", f"{label}, {particles}", ours=True)
                    ways[two] = gradients(case, asked.components, ItemizedELBO(2, draws), **config)
    for way in ways.values():
        way(_SEED)  # fills the caches
    drawn: dict[Entrant, list[Gradient]] = {entrant: [] for entrant in ways}
    order = np.random.default_rng(seed)
    for draw in range(num_draws):
        for index in order.permutation(len(ways)):
            entrant = list(ways)[index]
            drawn[entrant].append(ways[entrant](draw))
            on_draw()
    described = {**case.described(), "components": asked.components, option: f"{value:g}"}
    return _records(described, {entrant: DrawnGradients.of(found) for entrant, found in drawn.items()})


def gradients(case: Case, num_components: int, elbo: ItemizedELBO, **config: object) -> Callable[[int], Gradient]:
    """What draws the gradient of the loss on the case's batch with a seed, by an ELBO with its particles."""
    device = torch.device(case.device)
    network = lora_network(case).eval()
    with seeded(_SEED, device):
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=LORA_B_STD)
    model, guide = posterior(network, num_components, **config)
    batch = make_batch(case)
    named = [*model.named_parameters(), *guide.named_parameters()]
    chosen = {by: [p for name, p in named if part in name and p.requires_grad] for by, part in PARAMETERS.items()}

    def draw(seed: int) -> Gradient:
        with seeded(seed, device):
            synchronize(case.device)
            started = time.perf_counter()
            elbo.differentiable_loss(model, guide, **batch).backward()
            synchronize(case.device)
            seconds = time.perf_counter() - started
        by = {
            parameter: torch.cat([p.grad.flatten() for p in of if p.grad is not None])
            for parameter, of in chosen.items()
        }
        for _, parameter in named:
            parameter.grad = None
        kl = sum(float(value) for term, value in elbo.terms.items() if term.startswith("kl_"))
        return Gradient(seconds, by, kl / float(elbo.terms["nll"]))

    return draw


def _records(case: dict[str, int | str], drawn: Mapping[Entrant, DrawnGradients]) -> list[Record]:
    reference, first = next(iter(drawn.items()))
    found = []
    for who, draws in drawn.items():
        seconds = median_interval(draws.seconds)
        against = ratio_interval(draws.seconds, first.seconds)
        measured = [
            ("gradient", "s", seconds, against),
            ("kl_share", "share", median_interval(draws.kl_shares), None),
        ]
        for parameter, distances in draws.distances.items():
            spread, relative = variance(distances), variance_ratio(distances, first.distances[parameter])
            measured.append((f"variance_{parameter}", "variance", spread, relative))
            measured.append((f"cost_{parameter}", "variance s", product(spread, seconds), product(relative, against)))
        for quantity, unit, value, ratio in measured:
            ratios = {} if ratio is None or who is reference else {reference.name: ratio}
            found.append(Record("gradients", case, who.name, who.label, who.ours, quantity, unit, value, ratios))
    return found


def variance(distances: Floats) -> Estimate:
    """Trace of the covariance, sum_k |g_k - mean|^2 / (K - 1), from the squared distances (draw,)."""
    return _jackknifed(float(distances.sum() / (len(distances) - 1)), _without_each(distances))


def variance_ratio(distances: Floats, reference: Floats) -> Estimate:
    """Of two such traces; the draws at one position may depend on each other."""
    value = float(distances.sum() / reference.sum())
    return _jackknifed(value, _without_each(distances) / _without_each(reference))


def product(first: Estimate, second: Estimate) -> Estimate:
    """Of two independent positive estimates: distances from end to middle add up as errors do, as logarithms."""
    middle = first.median * second.median
    if middle == 0:
        return Estimate(0.0, 0.0, 0.0, min(first.coverage, second.coverage), first.rounds)
    below = math.hypot(*(math.log(factor.median / factor.low) for factor in (first, second)))
    above = math.hypot(*(math.log(factor.high / factor.median) for factor in (first, second)))
    coverage = min(first.coverage, second.coverage)
    return Estimate(middle, middle * math.exp(-below), middle * math.exp(above), coverage, first.rounds)


def _without_each(distances: Floats) -> Floats:
    """The trace without the k-th draw, for every k: its mean moves, which takes K / (K - 1) of the distance along."""
    n = len(distances)
    return np.asarray((distances.sum() - n / (n - 1) * distances) / (n - 2))


def _jackknifed(value: float, without_each: Floats) -> Estimate:
    """A positive estimate with its 95 % interval from leaving out one draw after the other, on the log scale.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 11.
    """
    n = len(without_each)
    if value == 0:  # gradients that are equal to the last bit: there is nothing to be uncertain about
        return Estimate(0.0, 0.0, 0.0, 0.95, n)
    logs = np.log(without_each)
    error = math.sqrt((n - 1) / n * float(((logs - logs.mean()) ** 2).sum()))
    factor = math.exp(_NORMAL_95 * error)
    return Estimate(value, value / factor, value * factor, 0.95, n)
