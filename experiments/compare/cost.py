"""What a method costs."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType

import torch

from bayes_lora.experiments.runs.machine import resident_peak
from bayes_lora.files import read_json, write_json

COST_FILE = "cost.json"


@dataclass(frozen=True)
class Cost:
    """Of training or of a prediction.

    Attributes:
        seconds: wall time. Of a training that was interrupted: without the steps that were lost, see `FitResult`.
        peak_memory_bytes: the most that the process held at once, Python, libraries and what earlier work left
            behind included; it compares methods only roughly. Of a process that uses CUDA: the most that tensors
            held there.
    """

    seconds: float = 0.0
    peak_memory_bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other."""
        return Cost(self.seconds + other.seconds, max(self.peak_memory_bytes, other.peak_memory_bytes))

    def write(self, folder: Path) -> None:
        """Keep it beside what was trained."""
        write_json(folder / COST_FILE, {"seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes})

    @classmethod
    def read(cls, folder: Path) -> "Cost":
        """What `write` kept."""
        return cls(**read_json(folder / COST_FILE))


class Measured:
    """Measures a block. Where the system cannot forget an earlier peak of memory (outside of Linux), it counts."""

    cost = Cost()

    def __enter__(self) -> "Measured":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else resident_peak()
        self.cost = Cost(perf_counter() - self._started, peak)
