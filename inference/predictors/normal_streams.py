"""Standard normal numbers of a draw, the same however many are read at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayes_lora.inference.guides.draw_design import Source
from bayes_lora.randomness import stream


@dataclass(frozen=True)
class NormalStream:
    """Standard normal numbers of one draw, read one after the other: those of its directions, summed."""

    directions: tuple[np.random.Generator, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, seed: int, source: Source) -> "NormalStream":
        """From its start."""
        streams = (stream(seed, source.block + index) for index in range(len(source.weights)))
        return cls(tuple(map(np.random.default_rng, streams)), source.weights)

    def standard_normal(self, shape: Sequence[int]) -> Any:
        """The next of them."""
        pairs = zip(self.weights, self.directions, strict=True)
        return sum(weight * generator.standard_normal(shape) for weight, generator in pairs)
