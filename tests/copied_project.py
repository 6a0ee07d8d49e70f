"""Running tests in a copy of the project."""

import os
import subprocess
import sys
from pathlib import Path


def run_tests(copy: Path, test_file: str, keyword: str) -> str:
    """What pytest says of the tests of a file that a keyword picks; they must pass."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-k", keyword, test_file]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout
