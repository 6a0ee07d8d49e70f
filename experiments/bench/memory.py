"""Memory of a training step, each contender in a process of its own: a process seldom gives back what it once had."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from bayes_lora.errors import BenchError
from bayes_lora.experiments.bench.cases import Case, loaded_base
from bayes_lora.experiments.bench.contenders import TRAINING
from bayes_lora.experiments.bench.timing import Turn
from bayes_lora.experiments.runs.machine import resident_peak

Result = TypeVar("Result")


@dataclass(frozen=True)
class Memory:
    """Bytes of a training process.

    Attributes:
        process_peak: what the whole process had in memory at its worst, Python and libraries included; on CUDA, what
            the device's allocator had handed out.
        tensor_peak: tensors at the worst moment of a step, beyond the base model's weights.
        held: tensors between two steps, beyond the base model's weights: adapters, the optimizer's state, noise.
    """

    process_peak: int
    tensor_peak: int
    held: int


def measure_apart(contender: str, case: Case) -> Memory:
    """Measure in a fresh process, with this process's number of threads.

    Raises:
        BenchError: that process failed; with what it said.
    """
    task = {"contender": contender, "case": asdict(case), "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "bayes_lora.experiments.bench.memory", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(
            f"measuring the memory of {contender!r} failed with exit status {done.returncode}. Leave the suite "
            f"'memory' out, or free memory and start again. It said:\n{done.stderr[-2000:]}"
        )
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def measure(contender: str, case: Case) -> Memory:
    """Measure in this process, which should have done nothing else before."""
    build = TRAINING[contender].build
    base = loaded_base(case.base, case.shape)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*base.parameters(), *base.buffers()))
    del base
    if case.device == "cuda":
        return _on_cuda(build(case), weights)
    turn = build(case)
    loaded_base.cache_clear()
    turn(1)
    process_peak = resident_peak()
    del turn
    # A second time with the allocator watched, which itself takes memory.
    loaded_base(case.base, case.shape)
    turn, built, _ = watched(lambda: build(case))
    _, kept, _ = watched(lambda: turn(1))
    _, _, peak = watched(lambda: turn(1))
    held = built + kept - weights
    return Memory(process_peak, held + peak, held)


def _on_cuda(turn: Turn, weights: int) -> Memory:
    turn(1)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    turn(1)
    peak = torch.cuda.max_memory_allocated()
    return Memory(peak, peak - weights, held - weights)


def watched(call: Callable[[], Result]) -> tuple[Result, int, int]:
    """What a call returns, the bytes of tensors it leaves behind, and the most it held at once beyond the start.

    From the allocator's own events, so that tensors that live for a moment count too.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return result, held, peak


def _main(task: str) -> None:
    given = json.loads(task)
    torch.set_num_threads(given["threads"])
    print(json.dumps(asdict(measure(given["contender"], Case(**given["case"])))))


if __name__ == "__main__":
    _main(sys.argv[1])
