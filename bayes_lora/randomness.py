"""Seeded randomness that leaves the caller's generators as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run with torch's global generators seeded, of the CPU and of accelerators; give back all that were there before.

    Python's and numpy's are given back too, since the Trainer seeds them.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=gpus):
            # torch.manual_seed would also leave a seed, with a traceback, for GPUs that nobody has used: a millisecond.
            torch.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed_all(seed)
            if device.type not in {"cpu", "cuda"}:
                torch.get_device_module(device).manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def stream(seed: int, index: int) -> int:
    """A seed for the `index`-th independent stream under `seed`: streams of different seeds do not overlap."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
