"""Two real processes under torchrun, against one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.distributed_run import run, run_heads
from tests.heads import HEADS, build

ROOT = Path(__file__).parents[3]


def launch(folder: Path, mode: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.distributed_run", str(folder), mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def two_processes(folder: Path, mode: str) -> list[dict[str, Tensor]]:
    launch(folder, mode)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return two_processes(tmp_path_factory.mktemp("own"), "own")


def test_parameters_stay_the_same_on_all_processes(own: list[dict[str, Tensor]]) -> None:
    names = [name for name in own[0] if name.startswith("trained.")]
    assert any(name.startswith("trained.guide.") for name in names)
    assert all(torch.equal(own[0][name], own[1][name]) for name in names)


def test_each_process_has_its_own_draws(own: list[dict[str, Tensor]]) -> None:
    assert not torch.allclose(own[0]["draw"], own[1]["draw"])


@pytest.mark.shows("sharding", "works", "DDP (`torchrun`, `accelerate launch`)")
def test_two_processes_have_the_gradients_of_one_on_both_batches(tmp_path: Path, own: list[dict[str, Tensor]]) -> None:
    together = two_processes(tmp_path, "frozen")
    # In a folder of its own: safetensors before 0.8 writes into the very file that `together` is mapped from.
    folder = tmp_path / "alone"
    folder.mkdir()
    run(folder, "frozen", batch_size=16)
    alone = load_file(folder / "rank0.safetensors")
    names = [name for name in alone if name.startswith("gradient.")]
    assert any(name.startswith("gradient.guide.") for name in names)
    for name in names:
        torch.testing.assert_close(together[0][name], alone[name], rtol=1e-5, atol=1e-9)
        assert torch.equal(together[0][name], together[1][name])
        # Noise drawn anew on each process, or a loss that counts twice, would be seen. (The mean residual, which is the
        # gradient of the head's bias, hardly feels the noise.)
        assert name.endswith("bias") or not torch.allclose(own[0][name], alone[name], rtol=1e-2)
        assert not torch.allclose(2 * together[0][name], alone[name], rtol=1e-2)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """Of every head what both processes wrote, and what one wrote that had both batches."""
    together, alone = tmp_path_factory.mktemp("together"), tmp_path_factory.mktemp("alone")
    launch(together, "heads")
    run_heads(alone, 16)
    files = ((together, 0), (together, 1), (alone, 0))
    return {
        head: [load_file(folder / str(number) / f"rank{rank}.safetensors") for folder, rank in files]
        for number, head in enumerate(HEADS)
    }


@pytest.mark.shows("sharding", "works", "DDP, with every kind of labels")
@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_the_gradients_of_one_process(head: str, heads: dict[str, list[dict[str, Tensor]]]) -> None:
    first, second, alone = heads[head]
    gradients = [name for name in alone if name.startswith("gradient.")]
    # Of the adapters, the guide, and the likelihood where it has parameters.
    expected = ["guide.", "model.network.", *["model.likelihood."] * bool([*build(head)[0].likelihood.parameters()])]
    assert all(any(name.startswith(f"gradient.{part}") for name in gradients) for part in expected)
    for name in gradients:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-9, atol=1e-12, msg=name)
    for name in first:
        assert torch.equal(first[name], second[name]), name
