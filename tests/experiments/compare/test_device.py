"""What runs on the CPU runs elsewhere too: here on a device that refuses tensors of the CPU, as a GPU does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils import backend_registration

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.runs.device import resolve_device

# Asked by name, so that no other error of an import is skipped.
if not hasattr(backend_registration, "_DummyBackendModule"):
    pytest.skip("the device is a backend written in Python, which torch 2.8 cannot have", allow_module_level=True)
from tests.other_device_run import logits

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def elsewhere(data_dir: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a process that does it all elsewhere; it fails where anything needs the CPU."""
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-W", "ignore", "-m", "tests.other_device_run", str(folder), str(data_dir), base]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return folder


def test_another_device_says_the_same(elsewhere: Path) -> None:
    there = load_file(elsewhere / "logits.safetensors")
    here = logits("cpu")
    assert there.keys() == here.keys()
    for name, expected in here.items():
        assert torch.allclose(there[name], expected, rtol=1e-4, atol=1e-5), name


def test_every_method_and_the_command_line_run_there(elsewhere: Path) -> None:
    (session,) = json.loads((elsewhere / "study" / "sessions.json").read_text(encoding="utf-8"))
    assert session["device"] == "other"
    assert json.loads((elsewhere / "run" / "environment.json").read_text(encoding="utf-8"))["device"] == "other:0"


def test_names() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for unknown in ("gpu", "meta"):
        with pytest.raises(ConfigurationError, match=f"{unknown!r} is no device that torch knows"):
            resolve_device(unknown)
    with pytest.raises(ConfigurationError, match="sees no such device here"):
        resolve_device("mps" if torch.cuda.is_available() else "cuda")
