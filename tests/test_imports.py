"""What is imported when: counted in modules, since seconds depend on the machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bayes_lora.experiments.command_line.main import COMMANDS, command_function, load_command

ROOT = Path(__file__).resolve().parent.parent
SLOW = {
    *("torch", "transformers", "peft", "pyro", "accelerate", "datasets", "numpy", "scipy", "sklearn", "pandas"),
    *("pyarrow", "xarray", "arviz", "arviz_stats", "arviz_plots", "matplotlib", "safetensors", "huggingface_hub"),
}
NOT_OURS_TO_LOAD = {
    *("IPython", "notebook", "ipykernel", "ipywidgets", "nbformat", "matplotlib", "arviz", "pandas", "datasets"),
    *("bitsandbytes", "triton", "numba", "llvmlite", "typer"),
}
TYPE = """
from bayes_lora.experiments.command_line.entry import main
sys.argv = ["bayes-lora", *{arguments}]
try:
    main()
except SystemExit:
    pass
"""


def loaded(code: str) -> set[str]:
    """The packages that are there after this code, in a process of its own."""
    tail = "\nprint('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-W", "ignore", "-c", "import json, sys\n" + code + tail]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], [], ["--hlep"], ["fti"], *([command, "--no-such-option"] for command in COMMANDS)],
    ids=" ".join,
)
def test_help_and_typing_errors_load_nothing_slow(arguments: list[str]) -> None:
    assert not loaded(TYPE.format(arguments=arguments)) & SLOW


def test_the_package_alone_loads_nothing_slow() -> None:
    assert not loaded("import bayes_lora; bayes_lora.MonteCLoRAConfig()") & SLOW
    assert not loaded("import bayes_lora.inference") & SLOW


def test_what_the_library_loads_beside_what_it_builds_on() -> None:
    """Nothing for notebooks, plots, quantization, compilation or the command line that its foundations do not load."""
    foundations = loaded("import torch, transformers, peft, pyro; transformers.Trainer")
    everything = loaded(
        "import bayes_lora.inference as library\n"
        "for name in library.__all__:\n"
        "    if 'inference_data' not in name: getattr(library, name)\n"
    )
    assert not (everything - foundations) & NOT_OURS_TO_LOAD


def test_every_name_of_the_door_is_there() -> None:
    code = (
        "import bayes_lora.inference as library\n"
        "missing = [name for name in library.__all__ if name not in dir(library) or getattr(library, name) is None]\n"
        "assert not missing, missing\n"
        "try: library.no_such_name\n"
        "except AttributeError as error: assert 'no_such_name' in str(error)\n"
        "else: raise AssertionError\n"
    )
    assert "bayes_lora" in loaded(code)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    from bayes_lora.experiments.command_line.main import _summary

    said = command_function(name).__doc__
    assert said is not None
    assert _summary(name) == said.split("\n\n")[0]
    assert load_command(name).name == name
