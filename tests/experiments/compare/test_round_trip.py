"""Every method that trains: killed while it trains, gone on with, found again."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from bayes_lora.experiments.compare.methods import METHODS, parse_methods
from bayes_lora.experiments.compare.running import run_study
from bayes_lora.inference import FitOptions
from tests.experiments.compare.studies import QUIET, make_study

STEPS = Trainer.training_step


class Killed(BaseException):
    """As a process is that is killed: nothing catches it."""


def predictions(study: Path) -> dict[str, bytes]:
    found = sorted((study / "predictions").rglob("*.parquet"))
    assert found
    return {str(path.relative_to(study)): logits_of(path) for path in found}


def logits_of(path: Path) -> bytes:
    """Without the seconds that it took."""
    from bayes_lora.inference.storage.predictions import read_prediction

    return read_prediction(path).packed.numpy().tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_all_the_way(
    name: str, base: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(folder: Path) -> None:
        """What `bayes-lora compare` does before its tables; the study is made anew, as by another process."""
        study = make_study(
            data_dir,
            base,
            training=FitOptions(epochs=2, batch_size=8, learning_rate=1e-2),
            train_rows=24,
            eval_rows=6,
            num_samples=2,
            held_out=0.25,
        )
        assert not run_study(study, parse_methods(name), folder, console=QUIET).failed

    taken: list[int] = []

    def step(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        if len(taken) == last:
            raise Killed
        return STEPS(*args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", step)
    whole, out = tmp_path / "whole", tmp_path / "cut"
    last = 0
    compare(whole)
    num_steps = len(taken)
    assert (num_steps > 0) is (METHODS[name].needs != "nothing")
    if num_steps:
        last = len(taken) + num_steps - 1  # of all its trainings, the last one's last step but one
        with pytest.raises(Killed):
            compare(out)
        assert len(list(out.rglob("*.parquet"))) < len(predictions(whole))
        before = len(taken)
        compare(out)
        assert 0 < len(taken) - before <= num_steps
        assert predictions(out) == predictions(whole)
    # What was trained is loaded, and says the same.
    expected, before = predictions(whole), len(taken)
    for path in (whole / "predictions").rglob("*.parquet"):
        path.unlink()
    compare(whole)
    assert len(taken) == before
    assert predictions(whole) == expected
