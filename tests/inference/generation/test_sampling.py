"""Which token is chosen, against the distributions that transformers' own sampling has."""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import Sampling
from bayes_lora.inference.generation.sampling import NextToken

CPU = torch.device("cpu")
PROBS = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.15, 0.1], dtype=torch.double)


def chosen(sampling: Sampling | None, count: int, step: int = 0) -> torch.Tensor:
    """One token for each of so many texts, all of the same distribution."""
    choose = NextToken(sampling, [(index, 0) for index in range(count)], step + 1, CPU)
    return choose(torch.zeros(count, 1, dtype=torch.long), PROBS.expand(count, -1), step)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.75}, {"temperature": 2.0, "top_k": 4, "top_p": 0.9}]
)
def test_frequencies_are_those_that_transformers_samples_by(options: dict[str, Any]) -> None:
    warpers: Any = LogitsProcessorList()
    if "temperature" in options:
        warpers.append(TemperatureLogitsWarper(options["temperature"]))
    if "top_k" in options:
        warpers.append(TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        warpers.append(TopPLogitsWarper(options["top_p"]))
    expected = warpers(torch.zeros(1, 1), PROBS.log()[None]).softmax(-1)[0]
    count = 20_000
    found = chosen(Sampling(**options), count).bincount(minlength=6) / count
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / count).sqrt()).all()
    assert not found[expected == 0].any()


def test_the_likeliest() -> None:
    assert chosen(None, 2).tolist() == [1, 1]
    assert chosen(Sampling(top_k=1), 2).tolist() == [1, 1]
    assert chosen(Sampling(temperature=1e-3), 2).tolist() == [1, 1]


def test_tokens_are_independent_over_texts_steps_and_seeds() -> None:
    count = 2000
    one, later, other = (chosen(Sampling(seed=seed), count, step) for seed, step in ((0, 0), (0, 1), (1, 0)))
    same = float(PROBS.square().sum())
    for first, second in ((one, later), (one, other), (one[:-1], one[1:])):
        share = float((first == second).double().mean())
        assert abs(share - same) < 4 * (same * (1 - same) / count) ** 0.5
    assert torch.equal(one, chosen(Sampling(), count))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0 must be positive.*sampling=None takes the likeliest"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 1.5}, r"top_p=1\.5 must be above 0 and at most 1"),
        ({"seed": 2**32}, "seed=4294967296"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Sampling(**options)
