"""The guide that CONTRIBUTING adds works everywhere, and its file is all it takes."""

from pathlib import Path

from tests.contributing import copy_with_example, run_pytest


def test_the_example_is_saved_loaded_trained_and_resumed(tmp_path: Path) -> None:
    copy = copy_with_example(tmp_path, "Add a guide")
    done = run_pytest(copy, "tests/inference/storage/test_kinds.py", "-k", "isotropic")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_round_trip[isotropic] PASSED" in done.stdout
    assert "test_the_trainer_resumes_and_saves_it[isotropic] PASSED" in done.stdout
