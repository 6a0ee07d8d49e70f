"""The guide that CONTRIBUTING adds works everywhere, and its file is all it takes."""

import os
import subprocess
import sys
from pathlib import Path

from tests.contributing import copy_with_example


def test_the_example_is_saved_loaded_trained_and_resumed(tmp_path: Path) -> None:
    copy = copy_with_example(tmp_path, "Add a guide")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/inference/storage/test_kinds.py"]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [*command, "-v", "-k", "isotropic"], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "test_round_trip[isotropic] PASSED" in done.stdout
    assert "test_the_trainer_resumes_and_saves_it[isotropic] PASSED" in done.stdout
