"""A killed run goes on from its last whole checkpoint, to the same end bit for bit."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bayes_lora.errors import CheckpointFileError
from bayes_lora.inference.storage.checkpoints import SEAL_FILE, newest_whole, require_whole, seal
from tests.training_run import NUM_STEPS, run

ROOT = Path(__file__).parents[3]
ROWS_READ = NUM_STEPS * 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def start(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore", "-m", "tests.training_run", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_after(process: "subprocess.Popen[str]", rows: int, delay: float) -> bool:
    """SIGKILL once the process has read `rows` rows and `delay` seconds passed; whether it was still running."""
    assert process.stdout is not None
    for seen, _ in enumerate(process.stdout, start=1):
        if seen >= rows:
            break
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def kill_and_resume(folder: Path, whole: dict[str, Tensor], kills: int, seed: int) -> None:
    rng = random.Random(seed)
    struck = 0
    while struck < kills:
        # At a random row, and a random moment of the step after it: far enough that checkpoints have been written,
        # early enough that the run is not over, whatever the machine's speed.
        struck += kill_after(start(folder), rng.randint(1, ROWS_READ // (2 * kills)), rng.uniform(0, 0.02))
        assert not (folder / "final.safetensors").exists()
    process = start(folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    final = load_file(folder / "final.safetensors")
    assert final.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(final[name], value), name


def test_two_kills(tmp_path: Path, whole: tuple[Path, dict[str, Tensor]]) -> None:
    kill_and_resume(tmp_path, whole[1], kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_twenty_kills(tmp_path: Path, whole: tuple[Path, dict[str, Tensor]], seed: int) -> None:
    kill_and_resume(tmp_path, whole[1], kills=4, seed=seed)


def test_a_finished_run_is_not_trained_again(whole: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "copy")
    again = run(tmp_path / "copy")
    assert all(torch.equal(again[name], value) for name, value in whole[1].items())


def test_damaged_checkpoints_are_passed_over(whole: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    checkpoints = folder / "checkpoints"
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-120"
    damaged = checkpoints / "checkpoint-120" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(CheckpointFileError, match=r"model\.safetensors is missing or damaged"):
        require_whole(checkpoints / "checkpoint-120")
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-118"
    again = run(folder)
    assert all(torch.equal(again[name], value) for name, value in whole[1].items())


@pytest.mark.parametrize("content", [None, b"", b'{"a', b"\xff\xfe"])
def test_a_checkpoint_without_a_readable_seal_is_not_whole(tmp_path: Path, content: bytes | None) -> None:
    checkpoint = tmp_path / "checkpoint-7"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"x" * 100)
    if content is not None:
        (checkpoint / SEAL_FILE).write_bytes(content)
    with pytest.raises(
        CheckpointFileError, match=r"is not a whole checkpoint: its complete\.json is missing or damaged"
    ):
        require_whole(checkpoint)
    assert newest_whole(tmp_path) is None
    seal(checkpoint)
    require_whole(checkpoint)
    assert newest_whole(tmp_path) == checkpoint
