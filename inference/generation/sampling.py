"""Which token follows: the likeliest, or one that is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from bayes_lora.checks import require_count, require_positive, require_seed
from bayes_lora.errors import ConfigurationError
from bayes_lora.randomness import Part, stream


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled.

    Attributes:
        temperature: T of p^(1 / T), renormalized; 1 is the distribution itself.
        top_k: the so many likeliest tokens only.
        top_p: the fewest likeliest tokens that together have this probability (Holtzman et al. 2020).
        seed: of the tokens. What draws the network from its posterior has another.

    Raises:
        ConfigurationError: a number that it cannot be.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature, "a number > 0; sampling=None takes the likeliest token")
        if self.top_k is not None:
            require_count("top_k", self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p={self.top_p!r} must be above 0 and at most 1.")
        require_seed("seed", self.seed)


class NextToken:
    """Chooses the next token of several texts, each by random numbers of its own.

    Text i at step t takes the token at which the sum of probabilities passes u_it, a uniform number from the stream of
    (seed, i): what is sampled depends neither on the other texts nor on the device.

    Args:
        sampling: how, or None for the likeliest.
        texts: what numbers the streams, for each text: those of a prompt and an answer to it.
        steps: at most.
        device: of the probabilities.
    """

    def __init__(
        self, sampling: Sampling | None, texts: Sequence[tuple[int, int]], steps: int, device: torch.device
    ) -> None:
        self._uniforms: Tensor | None = None
        self._warpers: Any = LogitsProcessorList()
        if sampling is None:
            return
        if sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k is not None:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None and sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(sampling.top_p)))
        seed = Part.TOKENS.seed(sampling.seed)
        numbers = []
        for prompt, answer in texts:
            generator = torch.Generator().manual_seed(stream(stream(seed, prompt) >> 32, answer))
            numbers.append(torch.rand(steps, generator=generator, dtype=torch.double))
        self._uniforms = torch.stack(numbers).to(device)

    def __call__(self, input_ids: Tensor, probs: Tensor, step: int) -> Tensor:
        """The tokens (text,).

        Args:
            input_ids: (text, token), what is there already.
            probs: (text, vocabulary), in double precision.
            step: tokens that were chosen before.
        """
        if self._uniforms is None:
            return probs.argmax(-1)
        if len(self._warpers):
            probs = self._warpers(input_ids, probs.log()).softmax(-1)
        sums = probs.cumsum(-1)
        # By the last sum, since rounding leaves it a little off 1. Behind an equal one: a token of probability 0 is
        # never taken.
        level = self._uniforms[:, step, None] * sums[:, -1:]
        return torch.searchsorted(sums, level, right=True).squeeze(-1)
