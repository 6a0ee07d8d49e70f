"""Seeded randomness: the same numbers for a seed, and the generators as they were."""

import random

import numpy as np
import pytest
import torch

from bayes_lora.randomness import Part, seeded, stream

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


def test_parts_of_a_fit_are_apart_unless_they_are_to_be_shared() -> None:
    found = [part.seed(seed) for seed in range(50) for part in Part]
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**32 for seed in found)
    # Nor is any of them the seed itself, or the stream of a draw.
    assert not {stream(seed, part) for seed in range(50) for part in Part} & {
        stream(seed, draw) for seed in range(50) for draw in range(50)
    }
    assert {part.seed(7, "shared") for part in Part} == {7}


def test_uniform_and_normal_numbers_of_one_seed_are_functions_of_each_other() -> None:
    """Why parts are apart: Box and Muller's transformation makes torch's normal numbers of its uniform ones."""
    torch.manual_seed(3)
    uniform = torch.rand(16, dtype=torch.float64)
    torch.manual_seed(3)
    normal = torch.randn(16, dtype=torch.float64)
    radius, angle = (-2 * (1 - uniform[:8]).log()).sqrt(), 2 * torch.pi * uniform[8:]
    torch.testing.assert_close(normal, torch.cat([radius * angle.cos(), radius * angle.sin()]))


class Accelerator:
    """As torch.mps and torch.xpu are: functions of a module, with one generator or one for each device."""

    def __init__(self, num_devices: int | None) -> None:
        self.generators = [torch.Generator().manual_seed(index) for index in range(num_devices or 1)]
        if num_devices is not None:
            self.get_rng_state_all = lambda: [generator.get_state() for generator in self.generators]
            self.set_rng_state_all = self._set_all
            self.manual_seed_all = lambda seed: [generator.manual_seed(seed) for generator in self.generators]

    def _set_all(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def get_rng_state(self) -> torch.Tensor:
        return self.generators[0].get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.generators[0].set_state(state)

    def manual_seed(self, seed: int) -> None:
        self.generators[0].manual_seed(seed)


@pytest.mark.parametrize(("kind", "num_devices"), [("mps", None), ("xpu", 2)])
def test_other_accelerators_are_given_back_too(
    kind: str, num_devices: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = Accelerator(num_devices)
    monkeypatch.setattr(torch, "get_device_module", lambda device: accelerator)
    before = [torch.rand(3, generator=generator.clone_state()) for generator in accelerator.generators]
    with seeded(5, torch.device(kind)):
        inside = [torch.rand(3, generator=generator) for generator in accelerator.generators]
    assert all(torch.equal(found, inside[0]) for found in inside)
    assert not torch.equal(inside[0], before[0])
    for generator, expected in zip(accelerator.generators, before, strict=True):
        assert torch.equal(torch.rand(3, generator=generator), expected)
