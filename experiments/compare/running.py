"""Running a comparison: one job for each method and seed, each done once, in pieces of any length."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from joblib import delayed
from rich.console import Console
from rich.markup import escape
from torch import nn

from bayes_lora.checks import all_numbers, require_count
from bayes_lora.choices import Splits
from bayes_lora.errors import BayesLoRAError, DataError
from bayes_lora.experiments.compare.cost import Measured
from bayes_lora.experiments.compare.fitting import Fitting
from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.point_estimate import POINT_ESTIMATE
from bayes_lora.experiments.compare.schedule import stages, with_bases
from bayes_lora.experiments.compare.study import EncodedRows, Study, StudyRows
from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.experiments.runs.parallel import in_parallel
from bayes_lora.experiments.runs.sessions import Session
from bayes_lora.experiments.runs.study_folder import only_one, open_study
from bayes_lora.files import read_json, write_json
from bayes_lora.inference import fit_temperature
from bayes_lora.inference.storage.predictions import About, StoredPrediction, read_prediction, write_prediction
from bayes_lora.models import Likelihood

EVALUATED, HELD_OUT, OUTSIDE = "evaluated", "held-out", "outside"
_PREDICTIONS, _TRAINED = "predictions", "trained"


def outside_part(name: str) -> str:
    """The part of the rows that a set from elsewhere is, see `StudyRows`."""
    return f"{OUTSIDE}-{name}" if name else OUTSIDE


@dataclass(frozen=True)
class Results:
    """The stored predictions of a study.

    Attributes:
        folder: the study's.
        methods: in the order in which they were asked for.
        seeds: of the study.
        outside: names of the sets of out-of-distribution rows, see `StudyRows`.
        splits: whether seeds differ in the rows that they train on and choose by, see `Study`.
        failed: what went wrong with a method under a seed, in this process.
    """

    folder: Path
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    outside: tuple[str, ...]
    splits: Splits = "per_seed"
    failed: dict[tuple[Method, int], str] = field(default_factory=dict)

    def path(self, method: Method, seed: int, part: str) -> Path:
        """Where the predictions of one part of the rows are."""
        return self.folder / _PREDICTIONS / method.folder / f"seed-{seed}-{part}.parquet"

    def read(self, method: Method, seed: int, part: str = EVALUATED) -> StoredPrediction:
        """Stored predictions.

        Raises:
            DataError: missing or damaged.
        """
        return read_prediction(self.path(method, seed, part))

    def chosen(self, method: Method, seed: int) -> dict[str, float]:
        """What was chosen for it on held-out rows or by the evidence."""
        return dict(read_json(self.path(method, seed, "chosen").with_suffix(".json")))

    def is_done(self, method: Method, seed: int) -> bool:
        """Whether everything of this method and seed is there."""
        files = [self.path(method, seed, part) for part in self.parts]
        return all(path.is_file() for path in (*files, self.path(method, seed, "chosen").with_suffix(".json")))

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the rows that are predicted, the evaluated ones last."""
        return (*map(outside_part, self.outside), HELD_OUT, EVALUATED)

    @property
    def missing(self) -> list[tuple[Method, int]]:
        """What is still to be done."""
        return [(method, seed) for seed in self.seeds for method in self.methods if not self.is_done(method, seed)]

    def write(
        self, method: Method, seed: int, parts: Mapping[str, StoredPrediction], chosen: Mapping[str, float]
    ) -> None:
        """Store a method's predictions, the evaluated rows last."""
        write_json(self.path(method, seed, "chosen").with_suffix(".json"), dict(chosen))
        for part in self.parts:
            write_prediction(self.path(method, seed, part), parts[part])


def run_study(
    study: Study,
    methods: Sequence[Method],
    folder: Path,
    *,
    console: Console,
    workers: int = 1,
    max_hours: float | None = None,
    device: torch.device = CPU,
) -> Results:
    """Do what is not done yet: first the point estimates that many methods start from, then seed by seed.

    Args:
        study: what the methods share.
        methods: any.
        folder: of the study; a new one, or one with the same study in it, which is then gone on with.
        console: what has been done is said there.
        workers: processes that share the jobs, each on one core where there are several.
        max_hours: no job is started after so many; what is missing can be asked of the result.
        device: where networks train and predict. It is not of the study: another one may go on with it.

    Raises:
        RunExistsError: the folder holds another study, or another process works on it.
        ConfigurationError: an option of a method has a value that it cannot have, or workers are below 1.
    """
    require_count("workers", workers)
    rows = study.load()
    # Seeds may be added: what is there stays as good as it was.
    open_study(folder, {**study.to_json(), "rows": study.checksum(rows)}, growing=("seeds",))
    results = Results(folder, tuple(methods), study.seeds, tuple(rows.outside), study.splits)
    wanted = [
        (method, seed)
        for seed in study.seeds
        for method in with_bases([method for method in methods if not results.is_done(method, seed)])
        if not results.is_done(method, seed)
    ]
    with only_one(folder):
        if wanted:
            bench = _Bench.of(study, rows, folder, console if workers == 1 else None, device)
            for method in dict.fromkeys(method for method, _ in [*results.missing, *wanted]):
                method.check(bench.fitting(study.seeds[0]))
            until = math.inf if max_hours is None else time.time() + 3600 * max_hours
            _work_through(bench, results, wanted, workers, until, console)
        for method, seed in results.missing:
            if method.tempered and results.is_done(method.untempered, seed):
                try:
                    _temper(results, method, seed)
                except BayesLoRAError as error:
                    results.failed[method, seed] = f"{type(error).__name__}: {error}"
    return results


def _work_through(
    bench: "_Bench",
    results: Results,
    wanted: Sequence[tuple[Method, int]],
    workers: int,
    until: float,
    console: Console,
) -> None:
    session, finished = Session.start(results.folder, device=str(bench.device)), 0

    def is_left(method: Method, seed: int) -> bool:
        # The others of the second stage would each train the network of a point estimate that is not there.
        return not results.is_done(method, seed) or (
            method == POINT_ESTIMATE and not bench.fitting(seed).has_point(seed)
        )

    left = [
        [(seed, [method for method in chain if is_left(method, seed)]) for seed, chain in stage]
        for stage in stages(wanted)
    ]
    total = sum(len(chain) for stage in left for _, chain in stage)
    for stage in left:
        for seed, done in in_parallel((delayed(bench.attempt)(results, *chain, until) for chain in stage), workers):
            for method, seconds, error in done:
                if error:  # the others have nothing to do with it
                    results.failed[method, seed] = error
                else:
                    session.done(method=method.label, seed=seed, seconds=round(seconds, 1))
                finished += 1
                said = f"[red]failed: {escape(error)}[/]" if error else f"{seconds:.0f} s"
                # Unbroken: where a log is written, rich would break lines at 80 columns.
                console.print(f"{finished}/{total}  seed {seed}  {escape(method.label)}: {said}", soft_wrap=True)


@dataclass(frozen=True)
class _Bench:
    """What the jobs of one process share.

    Attributes:
        study, rows: of all methods and seeds.
        processor: of the base model.
        folder: where is kept what is trained.
        console: for progress bars.
        device: where networks train and predict.
        parts: rows that are the same for every seed, by part: name of the task, split, rows.
    """

    study: Study
    rows: StudyRows
    processor: Any
    folder: Path
    console: Console | None
    device: torch.device
    parts: Mapping[str, tuple[str, str, EncodedRows]]
    _fittings: dict[int, Fitting] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, rows: StudyRows, folder: Path, console: Console | None, device: torch.device) -> "_Bench":
        processor = load_base_model(study.base_model, rows.task.label_names, rows.task.task_type).processor
        evaluated = EncodedRows.of(rows.task, rows.evaluated, processor, study)
        parts = {EVALUATED: (rows.task.name, str(study.eval_split), evaluated)}
        for name, foreign in rows.outside.items():
            found = EncodedRows.of(foreign.task, foreign.validation, processor, study, labelled=False)
            parts[outside_part(name)] = (foreign.task.name, "validation", found)
        shown = console if console is not None and console.is_terminal else None
        return cls(study, rows, processor, folder / _TRAINED, shown, device, parts)

    def fitting(self, seed: int) -> Fitting:
        """What trains on the rows of a seed."""
        key = 0 if self.study.splits == "shared" else seed
        if key not in self._fittings:
            task, parts = self.rows.task, self.study.split(self.rows, key)
            fit, held_out = (EncodedRows.of(task, part, self.processor, self.study) for part in parts)
            made = Fitting(self.study, task, fit, held_out, self.folder, self.console, self.device)
            self._fittings[key] = made
        return self._fittings[key]

    @cached_property
    def likelihood(self) -> Likelihood:
        """By which predictions are read; what it learns is in them."""
        return self.rows.task.family.likelihood(nn.Module(), self.rows.task.label_names)

    def attempt(
        self, results: Results, seed: int, methods: Sequence[Method], until: float
    ) -> tuple[int, list[tuple[Method, float, str]]]:
        """Do methods one after the other, unless it is too late; the seconds of each, or what went wrong with it."""
        done = []
        for method in methods:
            started, error = time.time(), ""
            if started >= until:
                break
            try:
                self._do(results, method, seed)
            except OSError:
                raise  # a full disk fails every method alike
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"
            done.append((method, time.time() - started, error))
        return seed, done

    def _do(self, results: Results, method: Method, seed: int) -> None:
        """Train what is to be trained, predict every part of the rows, store the predictions."""
        fitting = self.fitting(seed)
        tempered_on = fitting.held_out
        if method.halved:
            choosing, tempered_on = tempered_on.halves()
            fitting = replace(fitting, held_out=choosing)
        fitted, likelihood = method.build(fitting, seed), self.likelihood
        parts = {**self.parts, HELD_OUT: (self.rows.task.name, "held_out", tempered_on)}
        stored = {}
        for part, (task, split, rows) in parts.items():
            with Measured() as predicting, fitting.precision():
                prediction = fitted.predictor(rows.loader(), num_samples=self.study.num_samples, seed=seed)
            if not all_numbers(likelihood.pack(prediction)):
                raise DataError(
                    f"{method.label} predicts logits that are NaN or infinite on rows of {task}. Look at its options, "
                    "and at its learning rate if it was trained."
                )
            peak = (fitted.cost + predicting.cost).peak_memory_bytes
            about = About(method.label, seed, task, split, fitted.cost.seconds, predicting.cost.seconds, peak)
            stored[part] = StoredPrediction(rows.in_order(prediction, likelihood), rows.row_ids, about, likelihood)
        results.write(method, seed, stored, fitted.chosen)


def _temper(results: Results, method: Method, seed: int) -> None:
    """Apply a temperature to stored predictions; it costs next to nothing beside making them."""
    base = method.untempered
    held_out = results.read(base, seed, HELD_OUT)
    if held_out.prediction.labels is None:
        raise DataError(f"{results.path(base, seed, HELD_OUT)} has no labels to choose a temperature by.")
    likelihood = held_out.likelihood
    temperature = fit_temperature(held_out.prediction, likelihood)
    stored = {}
    for part in results.parts:
        before = results.read(base, seed, part)
        scaled = likelihood.rescaled(before.prediction, temperature)
        # Choosing it takes a prediction of the held-out rows.
        seconds = before.about.train_seconds + held_out.about.predict_seconds
        about = replace(before.about, method=method.label, train_seconds=seconds)
        stored[part] = StoredPrediction(scaled, before.row_ids, about, likelihood)
    results.write(method, seed, stored, {**results.chosen(base, seed), "temperature": temperature})
