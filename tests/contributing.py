"""The worked examples of CONTRIBUTING, followed to the letter in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_with_example(tmp_path: Path, heading: str) -> Path:
    """A copy of the project with the file that the example below a heading shows; its first line names the file."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    example = re.search(r"```python\n# (\S+)\n(.*?)```", section, re.DOTALL)
    assert example is not None, f"CONTRIBUTING has no example below {heading!r}"
    copy = tmp_path / "copy"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    (copy / example[1]).write_text(example[2], encoding="utf-8")
    return copy


def run_tests(copy: Path, *arguments: str) -> str:
    """What pytest says of tests in a copy, all of which pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
