"""Seeded randomness that leaves the caller's generators as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run with the global generators of the CPU and of `device` seeded; give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def stream(seed: int, index: int) -> int:
    """A seed for the `index`-th independent stream under `seed`: streams of different seeds do not overlap."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
