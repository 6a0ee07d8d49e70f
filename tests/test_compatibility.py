"""What an earlier build wrote still opens, predicts and resumes: `tests/data/deb5953/make.py` says how it was made.

On a processor, threads and packages like those that made the files every number must be the recorded one bit for bit.
Elsewhere sums are taken in another order, and numbers may be 1e-6 off.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer
from typer.testing import CliRunner

from bayes_lora.errors import CheckpointFileError, PosteriorFileError
from bayes_lora.experiments.command_line.main import app
from bayes_lora.inference import load_posterior, predict
from tests.data.deb5953 import make
from tests.experiments.commands import run

ABOUT = json.loads((make.HERE / "about.json").read_text(encoding="utf-8"))
ELSEWHERE = 1e-6

# An older peft than the one of the files says that they name options which it does not have.
pytestmark = pytest.mark.filterwarnings("ignore:Unexpected keyword arguments .* for class LoraConfig:UserWarning")


@pytest.fixture(autouse=True)
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old files, in the working directory; where the full path of that was in them, it is again."""
    with tarfile.open(make.HERE / "files.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for path in (tmp_path / "run" / "config.json", tmp_path / "interrupted" / "config.json"):
        text = path.read_text(encoding="utf-8")
        assert str(make.PLACE) in text
        path.write_text(text.replace(str(make.PLACE), str(tmp_path)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry at every step of a training."""
    taken: list[int] = []
    step = Trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        taken.append(len(taken))
        return step(*args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counted)
    return taken


def is_where_they_were_made() -> bool:
    return {name: ABOUT[name] for name in make.environment()} == make.environment()


def assert_as_recorded(found: dict[str, Tensor], recorded: dict[str, Tensor]) -> None:
    assert found.keys() == recorded.keys()
    for name, value in recorded.items():
        if is_where_they_were_made():
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, rtol=ELSEWHERE, atol=ELSEWHERE, msg=name)


def numbers(path: Path, *, without: str = "") -> dict[str, Tensor]:
    """Every leaf of JSON lines, by its place; texts must be the same, and are of the place."""

    def leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, part in value.items():
                if name != without:
                    yield from leaves(f"{place}.{name}", part)
        elif isinstance(value, str):
            yield f"{place}={value}", 0.0
        else:
            yield place, value

    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else [json.loads("".join(lines))]
    found = dict(leaf for index, row in enumerate(rows) for leaf in leaves(str(index), row))
    return {place: torch.tensor(value, dtype=torch.float64) for place, value in found.items()}


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(data)


def test_a_finished_run_predicts(old: Path) -> None:
    run("predict", "run", "--device", "cpu", "--output", "again.jsonl")
    assert_as_recorded(numbers(old / "again.jsonl"), numbers(old / "predicted.jsonl"))


def test_a_finished_run_predicts_rows_of_a_file(old: Path) -> None:
    """The run was evaluated on some of them."""
    run("predict", "run", "--device", "cpu", "--input", "rows.csv", "--output", "again.jsonl")
    found, recorded = (
        {(row["first"], row["second"]): row["probs"] for row in map(json.loads, path.read_text().splitlines())}
        for path in (old / "again.jsonl", old / "predicted.jsonl")
    )
    assert len(found) == 24
    assert recorded
    for texts, probs in recorded.items():  # the same draws, beside other rows
        assert found[texts] == pytest.approx(probs, abs=ELSEWHERE)


def test_an_interrupted_run_resumes(old: Path, steps: list[int]) -> None:
    """From the whole checkpoint, past the one that was being written, to the end of the run that was not killed."""
    assert not (old / "interrupted" / "checkpoints" / "checkpoint-16" / "complete.json").exists()
    run("fit", "--resume", "interrupted", "--device", "cpu")
    assert len(steps) == 24 - 8
    for name in ("predictions.jsonl", "metrics.json"):
        found, recorded = (numbers(old / folder / name, without="train_seconds") for folder in ("interrupted", "run"))
        assert_as_recorded(found, recorded)
    # The entry of step 10 is the mean of the steps since the checkpoint where there was one.
    found, recorded = (numbers(old / folder / "history.jsonl") for folder in ("interrupted", "run"))
    last = {place for place in recorded if place.startswith("1.")}
    assert len(last) == 9
    assert_as_recorded({place: found[place] for place in last}, {place: recorded[place] for place in last})
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        found, recorded = (load_file(old / folder / "posterior" / name) for folder in ("interrupted", "run"))
        assert_as_recorded(found, recorded)


def test_a_damaged_checkpoint_of_a_run_is_passed_over(old: Path, steps: list[int]) -> None:
    damage(old / "interrupted" / "checkpoints" / "checkpoint-8" / "model.safetensors")
    run("fit", "--resume", "interrupted", "--device", "cpu")
    assert len(steps) == 24


@pytest.mark.parametrize("name", make.POSTERIORS)
def test_a_posterior_predicts(old: Path, name: str) -> None:
    model, guide = load_posterior(make.network(), old / "posteriors" / name)
    found = {
        f"{name}.drawn": predict(model, guide, make.batches(), num_samples=4, draws="independent", seed=0).logits,
        f"{name}.mean": predict(model, guide, make.batches(), at_mean=True).logits,
    }
    assert not torch.allclose(found[f"{name}.drawn"][0], found[f"{name}.drawn"][1], atol=1e-3)
    recorded = load_file(old / "posteriors" / "logits.safetensors")
    assert_as_recorded(found, {key: value for key, value in recorded.items() if key in found})


def test_a_damaged_posterior_is_refused(old: Path) -> None:
    damage(old / "posteriors" / "paper-dense" / "posterior.safetensors")
    with pytest.raises(PosteriorFileError, match=r"posterior\.safetensors does not have the checksum"):
        load_posterior(make.network(), old / "posteriors" / "paper-dense")


def test_a_trainer_resumes(old: Path, steps: list[int]) -> None:
    trainer = make.trainer(old / "trainer")
    with torch.no_grad():
        for parameter in trainer.svi.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)  # all of it is to come from the checkpoint
    trainer.train(resume_from_checkpoint=str(old / "trainer" / "checkpoint-4"))
    assert len(steps) == 9 - 4
    assert_as_recorded(make.trained(trainer), load_file(old / "trainer" / "end.safetensors"))


def test_a_damaged_checkpoint_is_refused(old: Path) -> None:
    damage(old / "trainer" / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(CheckpointFileError, match=r"optimizer\.pt is missing or damaged"):
        make.trainer(old / "trainer").train(resume_from_checkpoint=str(old / "trainer" / "checkpoint-4"))


def test_a_finished_study_is_left_as_it_is(old: Path, steps: list[int]) -> None:
    before = [files(old / "study" / part) for part in ("trained", "predictions")]
    sessions = (old / "study" / "sessions.json").read_bytes()
    run(*make.STUDY, "--out", "study")
    assert not steps
    assert [files(old / "study" / part) for part in ("trained", "predictions")] == before
    assert (old / "study" / "sessions.json").read_bytes() == sessions


def test_what_a_study_trained_predicts(old: Path, steps: list[int]) -> None:
    """The point estimate, Laplace's and SWAG's files, BLoB's checkpoint and the posterior, all of them loaded."""
    recorded, trained = make.stored_logits(old / "study"), files(old / "study" / "trained")
    assert len(recorded) == 6
    for path in (old / "study" / "predictions").rglob("seed-0-*"):
        path.unlink()
    run(*make.STUDY, "--out", "study")
    assert not steps
    assert files(old / "study" / "trained") == trained
    assert_as_recorded(make.stored_logits(old / "study"), recorded)


def test_a_study_grows(old: Path, steps: list[int]) -> None:
    """By a method for the old seed, which trains nothing, and by a seed."""
    before = {name: of for name, of in files(old / "study").items() if "seed-0" in name}
    assert len(before) > 30
    run(*make.GROWN, "--out", "study")
    after = files(old / "study")
    assert before.items() <= after.items()
    # 16 rows are 2 steps an epoch: map, blob and monteclora have 6 epochs, swag goes on for a quarter.
    assert len(steps) == 3 * 12 + 4
    assert_as_recorded(make.stored_logits(old / "study"), load_file(old / "grown.safetensors"))


@pytest.mark.parametrize(
    ("method", "file", "error"),
    [
        ("map", "trained/trained.safetensors", "CheckpointFileError"),
        ("laplace", "laplace.safetensors", "PosteriorFileError"),
        ("swag", "swag.safetensors", "PosteriorFileError"),
        ("monteclora[sample_scale=0.1]", "posterior/adapter_model.safetensors", "PosteriorFileError"),
    ],
)
def test_a_damaged_file_of_a_study_is_refused(old: Path, steps: list[int], method: str, file: str, error: str) -> None:
    place = Path(method.replace("[", "_").rstrip("]")) / "seed-0"
    damage(old / "study" / "trained" / place / file)
    (old / "study" / "predictions" / place.with_name("seed-0-evaluated.parquet")).unlink()
    result = CliRunner().invoke(app, [*make.OF_STUDY, "--seeds", "0", "--methods", method, "--out", "study", "--json"])
    assert result.exit_code == 1
    ((label, seed, why),) = json.loads(result.stdout)["failed"]
    assert (label, seed) == (method, 0)
    assert why.startswith(error)
    assert not steps
