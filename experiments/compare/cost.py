"""What a method costs in memory."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

from bayes_lora.experiments.bench_memory import resident_peak


class PeakMemory:
    """The most memory held at once inside the block, bytes.

    Of the process, Python and libraries included, on a CPU; of the device's allocator on CUDA. Where the system cannot
    forget an earlier peak (outside of Linux), it is that of the process since its start.

    Attributes:
        peak: set at the end of the block.
    """

    peak: int = 0

    def __enter__(self) -> "PeakMemory":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_peak()
