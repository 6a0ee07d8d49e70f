"""A study of two tiny tasks on a tiny base model."""

from pathlib import Path

import pytest

from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.report import write_report
from bayes_lora.experiments.compare.running import Results, run_study
from bayes_lora.experiments.compare.study import Study
from tests.experiments.compare.studies import COMPARED, QUIET, make_study, named


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
