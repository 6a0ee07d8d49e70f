"""Saves a posterior over an older one, killed at every touch of a file in turn: run as a process of its own.

    python -m tests.saving_run FOLDER

leaves FOLDER/old and FOLDER/new, whole, and FOLDER/kill-K for each touch K, where the saving ended.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from bayes_lora.inference import save_posterior
from tests.posteriors import build_saved

_TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def die_at(touch: int, folder: Path) -> None:
    """Have this process killed just before it touches something in `folder` for the `touch`-th time."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _TOUCHES and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == touch:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    build_saved(folder / "old")
    model, guide = build_saved(folder / "new", init_concentration=3.0)
    touch, killed = 0, True
    while killed:
        touch += 1
        place = folder / f"kill-{touch}"
        shutil.copytree(folder / "old", place / "run")
        child = os.fork()
        if child == 0:
            die_at(touch, place)
            save_posterior(model, guide, place / "run", overwrite=True)
            os._exit(0)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
