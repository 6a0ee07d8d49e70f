"""The predictive of a Gaussian over a network's tensors: what SWAG, IVON and TFB share."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from bayes_lora.checks import require_count, require_seed
from bayes_lora.choices import Draws
from bayes_lora.inference.guides.draw_design import block_size, choose_design, source
from bayes_lora.inference.predictors.ensemble import exchanging
from bayes_lora.inference.predictors.predictor import Inputs, NetworkPredictor, Passes
from bayes_lora.models import network_logits
from bayes_lora.randomness import stream

# That a draw of any design is made of.
_MOST_DIRECTIONS = 3


class WeightNoise(Protocol):
    """A Gaussian over tensors of a network.

    Attributes:
        mean: of every tensor that is put into the network, by its name there.
    """

    @property
    def mean(self) -> Mapping[str, Tensor]: ...

    def noise(self, seed: int) -> Mapping[str, Tensor]:
        """What a draw adds to the mean of each tensor that is drawn, on the CPU."""


class DrawnWeights(NetworkPredictor):
    """``p(y | x) = 1/S sum_s softmax(f(x; theta_s))`` with ``theta_s = mean + deviation * noise_s``.

    Draw s of a design depends on (seed, s) only. The network has its own tensors back afterwards, also after an error.
    With a deviation of 0 every draw is the network at the mean.

    Cost: `num_samples` forward passes; in every batch every theta_s is drawn again, so that memory does not grow with
    the number of draws: that of a block's directions, three at most, is kept.

    Attributes:
        draws: a design, see `draw_design.source`; None is "tetrahedral" or "antithetic", as with `predict`.
    """

    draws: Draws | None

    @property
    @abstractmethod
    def weights(self) -> WeightNoise:
        """The Gaussian."""

    @property
    @abstractmethod
    def deviation(self) -> float:
        """What its noise is multiplied by."""

    def block_size(self, num_samples: int) -> int:
        """Of the design."""
        return block_size(choose_design(self.draws, num_samples))

    @contextmanager
    def drawing(self, num_samples: int, seed: int) -> Iterator[Passes]:
        """Of the Gaussian; draw s depends on (seed, s) only."""
        require_count("num_samples", num_samples)
        require_seed("seed", seed)
        design, mean = choose_design(self.draws, num_samples), self.weights.mean
        with exchanging(self.network, mean.keys()) as put:

            def logits(inputs: Inputs) -> Iterator[Tensor]:
                noise = lru_cache(_MOST_DIRECTIONS)(self.weights.noise)
                for of in (source(design, draw) for draw in range(num_samples)):
                    directions = [noise(stream(seed, of.block + index)) for index in range(len(of.weights))]
                    drawn = _combined(directions, [self.deviation * weight for weight in of.weights])
                    put({**mean, **{name: mean[name] + value for name, value in drawn.items()}})
                    yield network_logits(self.network, inputs).unsqueeze(0)

            yield logits


def _combined(noises: Sequence[Mapping[str, Tensor]], factors: Sequence[float]) -> dict[str, Tensor]:
    """sum_d w_d z_d of every tensor."""
    return {
        name: sum(
            (factor * noise[name] for factor, noise in zip(factors[1:], noises[1:], strict=True)), factors[0] * first
        )
        for name, first in noises[0].items()
    }
