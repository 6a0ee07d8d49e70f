"""TFB: the largest noise around a trained LoRA, isotropic in the weight it adds, that hardly changes what it says."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from bayes_lora.adapters.finding import find_adapters
from bayes_lora.checks import require_non_negative, require_positive
from bayes_lora.choices import Draws
from bayes_lora.errors import AdapterError, ConfigurationError, UnsupportedAdapterError
from bayes_lora.inference.guides.draw_design import choose_design
from bayes_lora.inference.predictors.drawn_weights import DrawnWeights
from bayes_lora.inference.predictors.point_estimate import PointEstimate
from bayes_lora.metrics.prediction import Prediction

_RATIO = 1.05  # of the search's bracket, where it ends


@dataclass(frozen=True, eq=False)
class TFB:
    """A Gaussian over LoRA-A, such that noise of deviation sigma is isotropic in the weight that the adapter adds:

        B = U D V' (singular values),   A = mu + sigma V D^-1 Z,   Z ~ N(0, I)
        B A = B mu + sigma U Z,         Cov of a column of A: sigma^2 (B'B)^-1

    Where D is 0, to rounding, B maps a direction to nothing, and the noise has none in it.

    Attributes:
        mean: LoRA-A of every adapter, by its parameter's name in the network.
        factors: V D^-1 of each, (rank, rank), zero columns where D is 0.
    """

    mean: dict[str, Tensor]
    factors: dict[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> Self:
        """Around a network's LoRA as it is.

        Raises:
            AdapterError, UnsupportedAdapterError: see `find_adapters`; DoRA, or experts; LoRA-B that are all 0, as they
                are before training.
        """
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        mean, factors = {}, {}
        for adapter in find_adapters(network):
            down, up = adapter.linear, adapter.layer.lora_B[adapter.key]
            if adapter.layer.lora_variant.get(adapter.key) is not None or up.weight.flatten(1).shape[1] != adapter.rank:
                raise UnsupportedAdapterError(
                    f"{adapter.name}: TFB is of plain LoRA, W0 + B A with one B, and this is DoRA or of experts. Leave "
                    "the layer out of target_modules, or train plain LoRA."
                )
            name = names[id(down.weight)]
            mean[name] = down.weight.detach().to("cpu", copy=True)
            factors[name] = _inverse_root(up.weight.detach().flatten(1).cpu()).to(mean[name])
        if not any(factor.any() for factor in factors.values()):
            raise AdapterError(
                "every LoRA-B is 0, so that no noise in LoRA-A reaches the network's output. Train it before."
            )
        return cls(mean, factors)

    def noise(self, seed: int) -> dict[str, Tensor]:
        """V D^-1 Z of every LoRA-A, on the CPU."""
        generator, found = torch.Generator().manual_seed(seed), {}
        for name in sorted(self.factors):
            z = torch.randn(self.mean[name].flatten(1).shape, generator=generator, dtype=self.mean[name].dtype)
            found[name] = (self.factors[name] @ z).reshape(self.mean[name].shape)
        return found


def _inverse_root(up: Tensor) -> Tensor:
    """V D^-1 of LoRA-B (out, rank), in double precision."""
    _, singular, right = torch.linalg.svd(up.double(), full_matrices=False)
    rank = up.shape[1]
    least = float(singular.max()) * max(up.shape) * torch.finfo(up.dtype).eps
    inverse = torch.where(singular > least, 1 / singular, 0.0)
    found = torch.zeros(rank, rank, dtype=torch.float64)  # a layer may be narrower than its rank
    found[:, : len(singular)] = right.mT * inverse
    return found


@dataclass(frozen=True, eq=False)
class TFBPredictor(DrawnWeights):
    """The predictive of `TFB` noise around a network: see `DrawnWeights`. At sigma 0 it is the network's, bit by bit.

    Args:
        network: a PEFT model with trained LoRA layers.
        sigma: standard deviation of an entry of what the noise adds to B A; see `tune_tfb`.
        draws: a design, see `draw_design.source`; by default "tetrahedral" or "antithetic", as with `predict`.

    Raises:
        ConfigurationError: a sigma below 0, or no such draws.
        AdapterError, UnsupportedAdapterError: see `TFB.of`.

    Source: Shi et al. 2025, Training-Free Bayesianization for Low-Rank Adapters of Large Language Models (arXiv
    2412.05723), and its published code. That draws signs of the noise for each token anew (flipout); here a draw is one
    A for all rows.

    Example:
        >>> sigma = tune_tfb(network, training_loader).sigma  # doctest: +SKIP
        >>> TFBPredictor(network, sigma)(loader, num_samples=10).mean_probs  # doctest: +SKIP
    """

    network: nn.Module
    sigma: float
    draws: Draws | None = None

    def __post_init__(self) -> None:
        require_non_negative("sigma", self.sigma)
        choose_design(self.draws, 1)  # for its check
        vars(self)["weights"] = TFB.of(self.network)  # now, for what it refuses

    @cached_property
    def weights(self) -> TFB:
        """Around the network as it was when this was made."""
        return TFB.of(self.network)

    @property
    def deviation(self) -> float:
        """sigma."""
        return self.sigma


@dataclass(frozen=True)
class TFBSearch:
    """What `tune_tfb` found.

    Attributes:
        sigma: the largest that it looked at and that keeps within the tolerance; 0 where the least does not.
        change: relative change of the loss at that sigma.
        loss: of the network without noise, nats per row.
        tried: every (sigma, change), in the order of sigmas.
        bounds: where it looked.
    """

    sigma: float
    change: float
    loss: float
    tried: tuple[tuple[float, float], ...]
    bounds: tuple[float, float]

    @property
    def at_upper_bound(self) -> bool:
        """Whether it is the largest that was allowed: look further up."""
        return self.sigma == self.bounds[1]


def tune_tfb(
    network: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    *,
    tolerance: float = 3e-3,
    num_samples: int = 10,
    draws: Draws | None = None,
    seed: int = 0,
    bounds: tuple[float, float] = (1e-3, 1.0),
    on_step: Callable[[float, float], None] | None = None,
) -> TFBSearch:
    """The largest sigma whose predictive keeps the loss on anchor rows within a tolerance of the network's own:

        | l(sigma) - l(0) | / l(0) <= tolerance,   l(sigma) = -1/n sum_i ln 1/S sum_s p(c_i | x_i, sigma noise_s)

    c_i is the class that the network itself predicts, so that anchor rows need no labels. All sigmas see the same
    draws. It is searched by bisection on a logarithmic axis until the bracket's ends are within 5 % of each other,
    which finds the largest where the change grows with sigma, and otherwise one at which it crosses the tolerance.

    Cost: about 10 S passes over the anchor rows, which are kept in memory.

    Args:
        network: a PEFT classifier with trained LoRA layers.
        loader: batches of anchor rows, like those that will be predicted, such as training rows.
        tolerance: 0.003, as published.
        num_samples: S; 10, as published. Take as many as you will predict with.
        draws, seed: see `TFBPredictor`.
        bounds: least and largest sigma to look at. Published for language models of 7 and 8 billion parameters: five
            bisections of [.001, .015], not on a logarithmic axis.
        on_step: called with (sigma, change) after each.

    Raises:
        ConfigurationError: a tolerance that is not positive, bounds that are none.
        AdapterError, UnsupportedAdapterError: see `TFB.of`.
        DataError: no rows.

    Source: arXiv 2412.05723 and its published code, which divides the change by the number of anchor rows besides.

    Example:
        >>> tune_tfb(network, anchors).sigma  # doctest: +SKIP
        0.12
    """
    require_positive("tolerance", tolerance)
    least, most = bounds
    if not 0 < least < most < math.inf:
        raise ConfigurationError(f"bounds={bounds!r} must be two numbers, 0 < least < most, such as (1e-3, 1.0).")
    batches = list(loader)
    classes = PointEstimate(network)(batches).mean_probs.argmax(-1)
    quiet = TFBPredictor(network, 0.0, draws)
    loss = _loss(quiet(batches, num_samples=1, seed=seed), classes)
    tried: dict[float, float] = {}

    def within(sigma: float) -> bool:
        noisy = replace(quiet, sigma=sigma)
        change = abs(_loss(noisy(batches, num_samples=num_samples, seed=seed), classes) - loss)
        # Noise this large may have made the logits NaN, and a network this sure may have no loss at all.
        tried[sigma] = change / loss if loss and math.isfinite(change) else math.inf if change else 0.0
        if on_step is not None:
            on_step(sigma, tried[sigma])
        return tried[sigma] <= tolerance

    best = most if within(most) else least if within(least) else 0.0
    if best == least:
        over = most
        while over / best > _RATIO:
            middle = math.sqrt(best * over)
            best, over = (middle, over) if within(middle) else (best, middle)
    return TFBSearch(best, tried.get(best, 0.0), loss, tuple(sorted(tried.items())), bounds)


def _loss(prediction: Prediction, classes: Tensor) -> float:
    return -float(prediction.log_mean_probs.gather(-1, classes.unsqueeze(-1)).mean())
