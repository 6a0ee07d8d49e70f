"""A finished sweep on a tiny network, a queue without cells, and rows of prompts and completions."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bayes_lora.experiments.sweep.queue import Queue
from bayes_lora.experiments.sweep.running import run_sweep
from bayes_lora.experiments.sweep.storage import open_storage
from tests.experiments.compare.studies import QUIET
from tests.experiments.sweep.sweeps import make_sweep, write_recipe

SMALL = """
tasks: [mrpc]
methods: [map, base_rate, monteclora, monteclora+mean]
settings: {epochs: 1, batch_size: 12, num_samples: 2, rank: 2, max_length: 16, log_every: 1}
grid:
  learning_rate: [1e-3, 1e-2, 1e-1]
  monteclora.sample_scale: [5e-3, 0.1]
seeds: [0, 1]
"""


@pytest.fixture(scope="session")
def finished(base: str, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three learning rates, two seeds; tests leave the folder's results as they are."""
    folder = tmp_path_factory.mktemp("sweeps")
    recipe = write_recipe(folder, base, SMALL)
    _, status = run_sweep(make_sweep(recipe, data_dir, folder / "sweep"), QUIET)
    assert not status.failed
    return folder / "sweep"


@pytest.fixture
def empty_queue(tmp_path: Path) -> Iterator[Queue]:
    storage = open_storage(f"sqlite:///{tmp_path}/empty.db", "empty", {}, create=True)
    yield Queue(storage, {})
    storage.close()


@pytest.fixture(scope="session")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "completions.jsonl"
    rows = [{"prompt": f"Is {number} even?", "completion": "no" if number % 2 else "yes"} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
