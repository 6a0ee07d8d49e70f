"""The worked examples of CONTRIBUTING.md, followed to the letter in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 40
_BLOCK = re.compile(r"^```python\n# (?P<path>[\w/]+\.py)\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)


def example(heading: str) -> dict[str, str]:
    """The files that a section's example writes: fenced Python whose first line is a comment with the file's name.

    Raises:
        ValueError: no such section, no file in it, or an example of more than 40 lines.
    """
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, found, section = text.partition(f"\n## {heading}\n")
    files = {match["path"]: match["source"] for match in _BLOCK.finditer(section.partition("\n## ")[0])}
    if not found or not files:
        raise ValueError(f"CONTRIBUTING.md has no section '{heading}' with Python that starts with '# path/file.py'.")
    lines = sum(source.count("\n") + 1 for source in files.values())
    if lines > MAX_LINES:
        raise ValueError(f"The example of '{heading}' has {lines} lines, more than {MAX_LINES}.")
    return files


def copy_with_example(tmp_path: Path, heading: str) -> Path:
    """A copy of the project, with the new files of a section's example in it.

    Raises:
        ValueError: see `example`; or a file of it exists, so that it does not only add.
    """
    files, copy = example(heading), tmp_path / "copy"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if os.path.lexists(ROOT / name):  # it may have been deleted since it was added
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    for name, source in files.items():
        if (copy / name).exists():
            raise ValueError(f"The example of '{heading}' writes {name}, which exists already.")
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(source, encoding="utf-8")
    return copy


def run_python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the copy, which it imports before what is installed."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


def run_pytest(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Tests of the copy."""
    return run_python(copy, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments)
