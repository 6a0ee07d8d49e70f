"""What runs without the packages of the extras, and what is said where they are missing."""

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Neither found nor imported, so that transformers, which uses some where it finds them, does not.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.partition(".")[0] in {names} else find(name, *more)
"""
LIBRARY = """
import torch
from tests.networks import build_pair, learnable_rows, make_batch
import bayes_lora.models
from bayes_lora.inference import FitOptions, SVITrainer, fit, load_posterior, predict, save_posterior
model, guide = build_pair(objective="elbo", kl_temperature=0.1)
fit(model, guide, learnable_rows(16), FitOptions(epochs=1))
print(predict(model, guide, [make_batch()], num_samples=2).logits.shape)
save_posterior(model, guide, sys.argv[1])
"""


def packages(extra: str) -> set[str]:
    return {Requirement(entry).name for entry in PROJECT["optional-dependencies"][extra]} - {PROJECT["name"]}


def run_without(names: set[str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT.format(names=names) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_library_needs_none_of_them(tmp_path: Path) -> None:
    # typer comes with transformers, which imports it.
    missing = packages("diagnostics") | packages("cli") - {"typer", "joblib", "filelock"}
    done = run_without(missing, LIBRARY, str(tmp_path / "posterior"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([2, 5, 3])\n"
    assert (tmp_path / "posterior" / "bayes_lora.json").is_file()


def test_what_is_missing_is_named_with_the_extra_that_brings_it() -> None:
    found = {}
    for what, code in {
        "command": "from bayes_lora.experiments.command_line.entry import main; main()",
        "diagnostics": "import bayes_lora.inference.diagnostics",
        "name": "from bayes_lora.inference import to_inference_data",
    }.items():
        done = run_without({"arviz", "datasets"}, code)
        assert done.returncode == 1
        found[what] = done.stderr.strip().splitlines()[-1]
    assert found["command"] == (
        "error: The command line needs datasets, arviz, which are not installed. Run: pip install 'bayes-lora[cli]'"
    )
    assert found["diagnostics"] == found["name"]
    assert found["name"].endswith("needs arviz, which is not installed. Run: pip install 'bayes-lora[diagnostics]'")


def test_few_packages_are_needed_by_all() -> None:
    assert len(PROJECT["dependencies"]) <= 12
    assert {"torch", "pyro-ppl", "transformers", "peft"} <= {
        Requirement(entry).name for entry in PROJECT["dependencies"]
    }
