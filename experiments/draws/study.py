"""A study of draws: several runs, batch by batch, in a folder that it can go on in."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import DataLoader

from bayes_lora.checks import require_count
from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.draws.measure import Plan, measure_batch, seconds_of, total
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.experiments.runs.predictions import own_rows
from bayes_lora.experiments.runs.runs import Run, load_run
from bayes_lora.experiments.runs.sessions import Session
from bayes_lora.experiments.runs.study_folder import only_one, open_study
from bayes_lora.files import sha256_of, write_file
from bayes_lora.inference.predictors.predictor import evaluation_mode

_BATCH_SIZE, _MEASURED = 32, "measured"
# What is timed: that many independent draws against designed ones, on that many batches in turn.
TIMED: tuple[tuple[Draws, int], ...] = (("independent", 32), ("tetrahedral", 4), ("antithetic", 2), ("independent", 4))
_TIMED_BATCHES = 5


@dataclass(frozen=True)
class DrawsStudy:
    """Which runs, on how many of their own rows, and what is drawn.

    Attributes:
        runs: folders of finished runs, by the name that tables have for them.
        plan: what is drawn.
        rows: the first so many rows of each; None takes all.
    """

    runs: Mapping[str, Path]
    plan: Plan
    rows: int | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigurationError("there is no run to look at. Give folders that 'bayes-lora fit' wrote.")
        if self.rows is not None:
            require_count("rows", self.rows)

    def to_json(self) -> dict[str, Any]:
        """All that the results depend on: of a run, its posterior's checksum."""
        runs = {name: sha256_of(folder / "posterior" / "bayes_lora.json") for name, folder in self.runs.items()}
        return {"runs": runs, "plan": asdict(self.plan), "rows": self.rows}


def run_draws_study(
    study: DrawsStudy, folder: Path, *, console: Console, device: torch.device = CPU
) -> dict[str, dict[str, Tensor]]:
    """The sums of each run, see `measure_batch`; what is there already is not measured again.

    Raises:
        DataError: a folder that is no finished run, or a run whose rows have no labels.
        RunExistsError: `folder` holds another study, or another process works on it.
    """
    open_study(folder, study.to_json(), growing=("runs",))
    found = {}
    with only_one(folder):
        session = Session.start(folder, device=str(device))
        for name, place in study.runs.items():
            found[name] = _measured(study, name, load_run(place, device), place, folder, session, console)
    return found


def _measured(
    study: DrawsStudy, name: str, run: Run, place: Path, folder: Path, session: Session, console: Console
) -> dict[str, Tensor]:
    batches = _batches(run, place, study.rows)
    scale = run.model.sample_scale.clone()
    run.model.set_sample_scale(study.plan.noise * scale)
    parts = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        torch.no_grad(),
        evaluation_mode(run.model),
        poutine.block(),
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(name, total=len(batches))
        for index, batch in enumerate(batches):
            path = folder / _MEASURED / name / f"{index:04d}.safetensors"
            if not path.is_file():
                inputs = {key: value.to(run.device) for key, value in batch.items() if isinstance(value, Tensor)}
                labels = inputs.pop("labels").cpu()
                sums = measure_batch(run.model, run.guide, inputs, labels, study.plan)
                if index < _TIMED_BATCHES:
                    for design, number in TIMED:
                        elapsed = seconds_of(run.model, run.guide, inputs, study.plan, design, number)
                        sums[f"seconds/{design}/{number}"] = torch.tensor(elapsed)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, save({key: value.contiguous() for key, value in sums.items()}))
                session.done(run=name, batch=index)
            parts.append(load_file(path))
            progress.advance(task)
    timed = {key for key in parts[0] if key.startswith("seconds/")}
    seconds = {key: torch.stack([part[key] for part in parts[:_TIMED_BATCHES]]) for key in timed}
    return {**total([{key: part[key] for key in part if key not in timed} for part in parts]), **seconds}


def _batches(run: Run, place: Path, rows: int | None) -> Sequence[Mapping[str, Any]]:
    """Of rows of like length, so that little is padded."""
    task = run.config.task
    known = own_rows(place, task)[:rows]
    if any(row.get(task.label_column) is None for row in known):
        raise DataError(f"the rows that {place} was evaluated on have no labels. Give a run with labelled rows.")
    data = run.encode(known)
    inputs = task.family.inputs
    lengths = inputs.lengths(data)
    order = sorted(range(len(data)), key=lambda index: lengths[index])
    return list(DataLoader(data.select(order), batch_size=_BATCH_SIZE, collate_fn=inputs.collate(run.processor)))
