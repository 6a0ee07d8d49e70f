"""Jobs side by side, which end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from joblib import delayed

from bayes_lora.experiments.runs.parallel import in_parallel

PARENT = """
import os, sys, time
from pathlib import Path
from joblib import delayed
from bayes_lora.experiments.runs.parallel import in_parallel

def job(folder, number):
    (Path(folder) / str(number)).write_text(str(os.getpid()))
    time.sleep(300)

list(in_parallel((delayed(job)(sys.argv[1], number) for number in range(2)), workers=2))
"""


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def test_calls_are_made_here_or_in_processes() -> None:
    assert list(in_parallel((delayed(square)(number) for number in range(3)), workers=1)) == [
        (number**2, os.getpid()) for number in range(3)
    ]
    found = list(in_parallel((delayed(square)(number) for number in range(3)), workers=2))
    assert {result for result, _ in found} == {0, 1, 4}
    assert os.getpid() not in {process for _, process in found}


def test_they_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: all((tmp_path / name).is_file() and (tmp_path / name).read_text() for name in "01"), 120)
        workers = [int((tmp_path / name).read_text()) for name in "01"]
        assert all(map(is_running, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(map(is_running, workers)), 20)


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        # A zombie has ended; who collects it in a container, if anyone, is not our concern.
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
