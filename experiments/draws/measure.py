"""Errors of predictions from few draws of a run's posterior, against many independent draws."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from bayes_lora.checks import require_count, require_positive, require_seed
from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.guides.draw_design import block_size
from bayes_lora.inference.predictors.posterior_passes import PosteriorPasses
from bayes_lora.inference.predictors.predictor import Inputs, in_full_precision
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import stream

QUANTITIES = ("probs", "nll", "total_entropy", "aleatoric_entropy", "mutual_information")
# Streams of the study: the truth, and the draws that are compared with it.
_TRUTH, _COMPARED = 0, 1


@dataclass(frozen=True)
class Plan:
    """What is drawn.

    Attributes:
        numbers: S, of draws whose error is asked for; rising.
        num_truth: independent draws that they are compared with.
        num_compared: draws of each design, which give num_compared / S predictions from S draws.
        noise: the noise is multiplied by this.
        seed: of all draws.

    Raises:
        ConfigurationError: a number below 1, numbers that do not rise or that are not even divisors of `num_compared`.
    """

    numbers: tuple[int, ...] = (2, 4, 8, 16, 32)
    num_truth: int = 1024
    num_compared: int = 256
    noise: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_truth", "num_compared"):
            require_count(name, getattr(self, name))
        require_positive("noise", self.noise)
        require_seed("seed", self.seed)
        odd = [number for number in self.numbers if number < 2 or number % 2 or self.num_compared % number]
        if not self.numbers or odd or any(one >= other for one, other in pairwise(self.numbers)):
            raise ConfigurationError(
                f"numbers={self.numbers} must rise, and each be even and divide {self.num_compared} draws, such as "
                "2,4,8,16,32."
            )

    @property
    def numbers_of(self) -> dict[Draws, tuple[int, ...]]:
        """The numbers of draws that whole blocks of a design make."""
        return {
            design: tuple(number for number in self.numbers if number % block_size(design) == 0)
            for design in get_args(Draws)
        }


@dataclass(frozen=True)
class Summary:
    """What a prediction says of the rows of a batch; with a first dimension for several predictions.

    Attributes:
        probs: ([prediction,] example, class).
        nll: ([prediction]), nats, the sum over the rows.
        total_entropy, aleatoric_entropy, mutual_information: ([prediction,] example), nats.
    """

    probs: Tensor
    nll: Tensor
    total_entropy: Tensor
    aleatoric_entropy: Tensor
    mutual_information: Tensor

    @classmethod
    def of(cls, probs: Tensor, entropies: Tensor, labels: Tensor) -> "Summary":
        """Of mean probabilities, and mean entropies of draws."""
        at_label = probs.gather(-1, labels.expand(probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        total = torch.special.entr(probs).sum(-1)
        nll = -at_label.clamp_min(torch.finfo(probs.dtype).tiny).log().sum(-1)
        return cls(probs, nll, total, entropies, total - entropies)


def measure_batch(model: BayesianLoRA, guide: Any, inputs: Inputs, labels: Tensor, plan: Plan) -> dict[str, Tensor]:
    """Sums over the rows of a batch, from which `Errors.of` makes errors once all batches are summed.

    Keys are "rows", "classes", "truth/nll", "<design>/<S>/<quantity>": for each of the predictions from S draws the sum
    of the squared differences from the truth, or of the NLL itself; "mean/<quantity>", the same of the network at the
    mean; and "passes/<design>/<S>", seconds.
    """
    truth_draws = _passes(model, guide, plan, "independent", plan.num_truth, _TRUTH).draws(inputs)
    truth = _summary(truth_draws, labels, plan.num_truth, 0)
    found = {"rows": torch.tensor(len(labels)), "classes": torch.tensor(truth.probs.shape[-1]), "truth/nll": truth.nll}
    found |= _differences("mean", _at_mean(model, inputs, labels), truth)
    for design, numbers in plan.numbers_of.items():
        drawn = _passes(model, guide, plan, design, plan.num_compared, _COMPARED).draws(inputs)
        for number in numbers:
            found |= _differences(f"{design}/{number}", _summary(drawn, labels, number), truth)
    return found


def seconds_of(model: BayesianLoRA, guide: Any, inputs: Inputs, plan: Plan, design: Draws, number: int) -> float:
    """Seconds that a prediction of a batch from `number` draws takes."""
    passes = _passes(model, guide, plan, design, number, _COMPARED)
    passes.draws(inputs)
    started = time.perf_counter()
    passes.draws(inputs)
    return time.perf_counter() - started


def _passes(model: BayesianLoRA, guide: Any, plan: Plan, design: Draws, num_samples: int, part: int) -> PosteriorPasses:
    return PosteriorPasses(model, guide, num_samples, stream(plan.seed, part) >> 32, draws=design)


def _summary(logits: Tensor, labels: Tensor, number: int, dim: int | None = None) -> Summary:
    """Of predictions from `number` draws each, one after the other; with dim=0 of a single one."""
    probs = in_full_precision(logits).double().softmax(-1)
    entropies = torch.special.entr(probs).sum(-1)
    if dim == 0:
        return Summary.of(probs.mean(0), entropies.mean(0), labels)
    probs, entropies = (values.unflatten(0, (-1, number)).mean(1) for values in (probs, entropies))
    return Summary.of(probs, entropies, labels)


def _at_mean(model: BayesianLoRA, inputs: Inputs, labels: Tensor) -> Summary:
    logits = model.network_logits(inputs).unsqueeze(0)
    return _summary(logits, labels, 1)


def _differences(name: str, found: Summary, truth: Summary) -> dict[str, Tensor]:
    sums = {f"{name}/nll": found.nll, f"{name}/probs": (found.probs - truth.probs).square().sum((-2, -1))}
    for of in QUANTITIES[2:]:
        sums[f"{name}/{of}"] = (getattr(found, of) - getattr(truth, of)).square().sum(-1)
    return sums


@dataclass(frozen=True)
class Error:
    """Root mean square error over rows (and classes) and predictions, and its standard error over predictions.

    A part of what was seen is the error of the truth, which has finitely many draws too: it has been taken out.
    """

    value: float
    standard_error: float


def errors_of(sums: Mapping[str, Tensor], plan: Plan) -> dict[str, dict[str, Error]]:
    """{"<design>/<S>" or "mean": {quantity: error}} from the sums over all batches."""
    rows, classes = float(sums["rows"]), float(sums["classes"])
    size = {"probs": rows * classes, "nll": 1.0, **dict.fromkeys(QUANTITIES[2:], rows)}
    squares: dict[str, dict[str, Tensor]] = {}
    for key, values in sums.items():
        name, _, quantity = key.rpartition("/")
        if quantity in QUANTITIES and name != "truth":
            if quantity == "nll":
                values = ((values - sums["truth/nll"]) / rows).square()
            squares.setdefault(name, {})[quantity] = values / size[quantity]
    most = plan.numbers[-1]
    found: dict[str, dict[str, Error]] = {}
    for name, of in squares.items():
        found[name] = {}
        for quantity, values in of.items():
            # Of S independent draws the mean square is v / S + v / N, N of them being the truth.
            reference = squares[f"independent/{most}"][quantity].mean()
            of_truth = reference * most / (plan.num_truth + most)
            mean = (values.mean() - of_truth).clamp_min(0)
            spread = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(float("nan"))
            root = mean.sqrt()
            found[name][quantity] = Error(float(root), float(spread / (2 * root)) if root > 0 else float("nan"))
    return found


def worth(errors: Mapping[str, Mapping[str, Error]], name: str, quantity: str, plan: Plan) -> float:
    """How many independent draws have the same mean square error, v / S."""
    most = plan.numbers[-1]
    reference, own = errors[f"independent/{most}"][quantity].value, errors[name][quantity].value
    return most * (reference / own) ** 2 if own > 0 else float("inf")


def total(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sums of all batches; the number of classes is that of each."""
    found = {key: torch.stack([part[key] for part in parts]).sum(0) for key in parts[0]}
    return {**found, "classes": parts[0]["classes"]}
