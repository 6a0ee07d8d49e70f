"""How much memory a call holds at its worst, on the CPU."""

from collections.abc import Callable

from bayes_lora.experiments.bench.memory import watched


def peak_bytes(call: Callable[[], object]) -> int:
    """The largest number of bytes of tensors that `call` holds at once, beyond what was there before."""
    return watched(call)[2]
