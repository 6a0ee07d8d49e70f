"""Seeded randomness that leaves the caller's generators as they were."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch

from bayes_lora.choices import Seeding


class Part(IntEnum):
    """The parts of a fit, and of what is written under its posterior, with randomness of their own. They lie above
    every number of draws, whose streams count up from 0."""

    HEAD = 2**31
    ADAPTERS = HEAD + 1
    GUIDE = HEAD + 2
    ORDER = HEAD + 3
    NOISE = HEAD + 4
    SPLIT = HEAD + 5
    TOKENS = HEAD + 6
    ANSWERS = HEAD + 7

    def seed(self, seed: int, seeding: Seeding = "separate") -> int:
        """Where this part starts from: a seed that every generator takes, 0 <= seed < 2^32.

        From one seed, the parts would not be independent: torch draws uniform and normal numbers from the same bits,
        so that a LoRA-A and a head that both start from it are functions of each other.
        """
        return seed if seeding == "shared" else stream(seed, self) >> 32


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run with torch's global generators seeded, of the CPU and of accelerators; give back all that were there before.

    Python's and numpy's are given back too, since the Trainer seeds them.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    give_back = None if device.type in {"cpu", "cuda"} else _saved(torch.get_device_module(device))
    try:
        with torch.random.fork_rng(devices=gpus, device_type="cuda"):
            # torch.manual_seed would also leave a seed, with a traceback, for GPUs that nobody has used: a millisecond.
            torch.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed_all(seed)
            if give_back is not None:
                _seed(torch.get_device_module(device), seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        if give_back is not None:
            give_back()


def stream(seed: int, index: int) -> int:
    """A seed for the `index`-th independent stream under `seed`: streams of different seeds do not overlap."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])


def _seed(accelerator: Any, seed: int) -> None:
    getattr(accelerator, "manual_seed_all", accelerator.manual_seed)(seed)


def _saved(accelerator: Any) -> Callable[[], None]:
    """Puts the generators of an accelerator back to where they are now.

    XPU has one for each device, MPS one for all.
    """
    if hasattr(accelerator, "get_rng_state_all"):
        states = accelerator.get_rng_state_all()
        return lambda: accelerator.set_rng_state_all(states)
    state = accelerator.get_rng_state()
    return lambda: accelerator.set_rng_state(state)
