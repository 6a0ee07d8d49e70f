"""Two tiny built-in tasks in a data folder, and a study of them on a tiny base model."""

import gzip
import json
from pathlib import Path

import pytest

from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.report import write_report
from bayes_lora.experiments.compare.running import Results, run_study
from bayes_lora.experiments.compare.study import Study
from bayes_lora.experiments.tasks.embedded_task import make_embedded_task
from tests.experiments.compare.studies import COMPARED, QUIET, make_study, named


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mrpc and rte, 40 and 20 rows of the embedded task's in and out of distribution."""
    folder = tmp_path_factory.mktemp("data")
    task = make_embedded_task(num_train=40, num_validation=12, num_out_of_distribution=14)
    parts = {"mrpc": (task.rows.train, task.rows.validation), "rte": (task.rows.train[:20], task.out_of_distribution)}
    for name, splits in parts.items():
        (folder / name).mkdir()
        for split, rows in zip(("train", "validation"), splits, strict=True):
            lines = [{key: row[key] for key in ("sentence1", "sentence2", "label")} for row in rows]
            with gzip.open(folder / name / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


@pytest.fixture(scope="session")
def study(data_dir: Path, base: str) -> Study:
    """One seed, two epochs of five steps, three draws."""
    return make_study(data_dir, base)


@pytest.fixture(scope="session")
def done(data_dir: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two seeds of five methods."""
    folder = tmp_path_factory.mktemp("studies") / "study"
    results = run_study(make_study(data_dir, base, seeds=(0, 1)), parse_methods(COMPARED), folder, console=QUIET)
    write_report(results, [named("map"), named("temperature")])
    return results
