"""Jobs in processes side by side, which end with the process that started them."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from joblib import Parallel, parallel_config

from bayes_lora.experiments import ignore_known_warnings


def in_parallel(calls: Iterable[Any], workers: int) -> Iterator[Any]:
    """What calls return, as they come to their end.

    Args:
        calls: of `joblib.delayed`.
        workers: processes, each on one core; 1 makes the calls here.
    """
    # One by one: batches of jobs would be kept, and shown, only when the last of them is done.
    begin = {"initializer": _begin, "initargs": (os.getpid(),)}
    with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1, **begin):
        yield from Parallel(return_as="generator_unordered", batch_size=1)(calls)


def _begin(parent: int) -> None:
    """In a new worker: it would go on after its parent was killed, beside those of the same command given again."""
    ignore_known_warnings()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
