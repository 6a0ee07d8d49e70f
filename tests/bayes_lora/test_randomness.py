"""Seeded randomness: the same numbers for a seed, and the generators as they were."""

import random

import numpy as np
import pytest
import torch

from bayes_lora.randomness import seeded, stream

CPU = torch.device("cpu")


def numbers() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.random())]  # noqa: NPY002


def test_the_generators_are_given_back_also_after_an_error() -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    expected = numbers()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    with pytest.raises(ZeroDivisionError), seeded(0, CPU):
        numbers().append(1 / 0)
    assert numbers() == expected


def test_a_seed_gives_what_torch_manual_seed_gives() -> None:
    for seed in (0, 7, stream(0, 1), 2**64 - 1):
        with seeded(seed, CPU):
            found = torch.randn(5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            assert torch.equal(torch.randn(5), found)


def test_gpus_that_nobody_uses_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with seeded(0, CPU):
        pass
    assert seeds == []
    torch.manual_seed(0)  # which is why it is not used
    assert seeds == [0]


def test_streams_are_apart() -> None:
    assert len({stream(seed, index) for seed in range(50) for index in range(50)}) == 2500
