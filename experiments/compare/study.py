"""What all methods of a comparison share: rows, base model, training and seeds."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils.data import DataLoader

from bayes_lora.checks import require_choice, require_count, require_fraction, require_seed
from bayes_lora.choices import Draws, EvalSplit, Splits
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.inputs.inputs import Encoded
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.runs.study_folder import STUDY_FILE
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.sources import RowsSource, digest
from bayes_lora.experiments.tasks.tasks import TASKS, Task, TaskRows, checked_rows, load_task
from bayes_lora.files import read_json
from bayes_lora.inference import FitOptions, Prediction
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.inference.storage.predictions import row_id
from bayes_lora.metrics.drawn_prediction import DrawnPrediction
from bayes_lora.models import Likelihood
from bayes_lora.randomness import Part, stream

# What studies of version 0.1 did, and do not say.
BEFORE: Mapping[str, str] = {"splits": "shared", "seeding": "shared", "draws": "independent"}
_SCHEMA_VERSION = 1
_SET_NAME = re.compile(r"[\w-]+", re.ASCII)


@dataclass(frozen=True)
class Study:
    """Everything but the methods.

    Attributes:
        source: where the rows are from; its `limit` is not used.
        outside: another built-in task, whose rows are out of distribution here, or None.
        outside_dir: folder that holds it; None is the hub.
        outside_files: name and file of each further set of rows that are out of distribution; they need no labels.
        base_model: see `load_base_model`.
        lora: adapters of every method that has some; its dropout is MC dropout's, and is on in all training.
        training: of the point estimate and of every posterior that is trained from the start; each seed takes the
            place of its `seed`. Its precision is also that of predictions, but for Laplace's, which are exact.
        seeds: of head, adapters, order of rows, dropout and draws.
        num_samples: posterior draws of a prediction.
        draws: how these belong together, see `draw_design.source`; dropout's are independent in any case.
        train_rows: so many rows of the training split; None takes all.
        held_out: part of those rows on which nothing is trained: temperatures and scales are chosen there.
        splits: "per_seed", each seed has its own held-out rows and, with `train_rows`, its own training rows, drawn
            from all; "shared", all seeds have the same ones, with `train_rows` the first.
        eval_split: the rows that the tables are about: "validation", or "held_out" to choose settings without looking
            at the validation rows: then half of the held-out rows are for the tables, and half for what is chosen,
            and the out-of-distribution rows are of the other task's training split, as many as its validation split
            has.
        eval_rows: the first so many of these, and of the out-of-distribution rows; None takes all.
        max_length: tokens per row; None takes the task's.

    Raises:
        ConfigurationError: a value outside its domain, a seed twice, the task itself outside, or two sets of one name.
    """

    source: RowsSource
    outside: str | None = None
    outside_dir: Path | None = None
    outside_files: tuple[tuple[str, Path], ...] = ()
    base_model: str = "minilm"
    lora: LoRAOptions = field(default_factory=lambda: LoRAOptions(dropout=0.1))
    training: FitOptions = field(default_factory=FitOptions)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_samples: int = 16
    draws: Draws | None = None
    train_rows: int | None = None
    held_out: float = 0.1
    splits: Splits = "per_seed"
    eval_split: EvalSplit = "validation"
    eval_rows: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds={self.seeds} must be different numbers, at least one: --seeds 0,1,2.")
        if self.outside is not None and self.outside == self.source.task:
            raise ConfigurationError(
                f"--outside {self.outside} is the task itself, whose rows cannot be told from its rows. Name another."
            )
        if self.source.family.inputs.suffixes:
            self._check_files()
        self._check_outside()
        self._check_outside_files()
        for seed in self.seeds:
            require_seed("seeds", seed)
        require_count("num_samples", self.num_samples)
        require_fraction("held_out", self.held_out)
        require_choice("splits", self.splits, get_args(Splits))
        if self.draws is not None:
            require_choice("draws", self.draws, get_args(Draws))
        require_choice("eval_split", self.eval_split, get_args(EvalSplit))
        for name in ("train_rows", "eval_rows"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))

    def _check_outside(self) -> None:
        """Rows from outside have to be readable as the task's own are."""
        if self.outside is None:
            return
        family = self.source.family
        if family.reads_labels:
            raise ConfigurationError(
                f"--outside {self.outside} has classes and no completions, so its rows cannot be read as these are. "
                "Drop it."
            )
        choices = "multiple_choice"
        if self.outside in TASKS and (TASKS[self.outside].task_type == choices) != family.name.startswith(choices):
            raise ConfigurationError(
                f"--outside {self.outside}: of this task and that one, only one has questions with options, so that "
                "rows of the other cannot be read as its rows are. Name another."
            )

    def _check_files(self) -> None:
        if self.outside is not None:
            raise ConfigurationError(f"--outside {self.outside} is a task of texts, not of files as these. Drop it.")
        if self.training.group_by_length:
            raise ConfigurationError("--group-by-length knows the length of texts only. Drop it.")

    def _check_outside_files(self) -> None:
        family, names = self.source.family, [name for name, _ in self.outside_files]
        for name in names:
            if not _SET_NAME.fullmatch(name) or names.count(name) > 1:
                raise ConfigurationError(
                    f"--outside-file: {name!r} must be a name of its own, of letters, digits, _ and -: name=path."
                )
        if names and (family.inputs.suffixes or family.reads_labels):
            raise ConfigurationError(
                f"--outside-file has rows of texts without labels, and task type {self.source.task_type} reads "
                f"{'files in folders' if family.inputs.suffixes else 'its labels'}. Drop it."
            )

    def options(self, seed: int, **changes: Any) -> FitOptions:
        """Of a training under this seed."""
        return replace(self.training, seed=seed, **changes)

    def load(self) -> "StudyRows":
        """All rows, in the same parts at every call.

        Raises:
            TaskError, DataError: see `RowsSource.load`; or a class that the rows taken do not have.
        """
        rows = self.source.load()
        known, evaluated = rows.train, rows.validation
        if self.splits == "shared":
            known = rows.train[: self.train_rows]
            _require_classes("--train-rows", rows, rows.train, known)
        if self.eval_split == "held_out" and self.splits == "shared":
            evaluated = self._hold_out(rows.task, self._hold_out(rows.task, known, self.held_out)[1], 0.5)[1]
        elif self.eval_split == "held_out":
            known, evaluated = self._hold_out(rows.task, known, self.held_out / 2 * self._share_taken(known))
        _require_classes("--eval-rows", rows, evaluated, evaluated[: self.eval_rows])
        outside: dict[str, TaskRows] = {}
        if self.outside is not None:
            found = load_task(self.outside, self.outside_dir)
            if not rows.task.family.renames_columns:  # read as the task's own rows are
                found = replace(found, task=replace(found.task, task_type=rows.task.task_type))
            # Those that settings are chosen by are not those that the choice is judged by, here too.
            foreign = found.validation if self.eval_split == "validation" else found.train[: len(found.validation)]
            outside[""] = replace(found, train=[], validation=foreign[: self.eval_rows])
        for name, path in self.outside_files:
            task = replace(rows.task, name=name)
            outside[name] = TaskRows(task, [], checked_rows(task, path, labelled=False)[: self.eval_rows])
        return StudyRows(rows.task, known, evaluated[: self.eval_rows], outside)

    def split(self, rows: "StudyRows", seed: int) -> tuple[list[Row], list[Row]]:
        """(rows to train on, rows to choose by) of a seed; what was left out of `load` is in neither.

        Raises:
            DataError: too few rows for every class to be in both.
        """
        if self.splits == "shared":
            fit, held_out = self._hold_out(rows.task, rows.train, self.held_out)
            return fit, self._hold_out(rows.task, held_out, 0.5)[0] if self.eval_split == "held_out" else held_out
        known, fraction = rows.train, self.held_out
        of_taken, of_held_out = (stream(Part.SPLIT.seed(seed), index) >> 32 for index in range(2))
        if self.eval_split == "held_out":  # of which a half has been taken
            fraction = fraction / (2 - fraction)
        share = self._share_taken(known)
        if share < 1:
            known = self._hold_out(rows.task, known, share, of_taken)[1]
        return self._hold_out(rows.task, known, fraction, of_held_out)

    def checksum(self, rows: "StudyRows") -> str:
        """Of all rows, by which a resumed study knows that they are still the same."""
        shared = self.splits == "shared"
        known = TaskRows(rows.task, *(self.split(rows, 0) if shared else (rows.train, [])))
        parts = [known, TaskRows(rows.task, rows.evaluated, []), *rows.outside.values()]
        return "-".join(digest(part)[:16] for part in parts)

    def _share_taken(self, rows: Sequence[Row]) -> float:
        # Half a row less, since parts are rounded up to whole rows.
        return 1.0 if self.train_rows is None else min(1.0, (self.train_rows - 0.5) / len(rows))

    def _hold_out(self, task: Task, rows: Sequence[Row], fraction: float, seed: int = 0) -> tuple[list[Row], list[Row]]:
        path = Path(self.source.train_file or self.source.train_dir or task.name)
        return task.family.hold_out(rows, task.label_column, path, fraction=fraction, seed=seed)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the places of the rows on this machine: what they are, their checksum says."""
        found = {"schema_version": _SCHEMA_VERSION, **asdict(self)}
        del found["source"]["data_dir"], found["source"]["train_dir"], found["source"]["eval_dir"], found["outside_dir"]
        # Nor the files, of which the checksum knows.
        names = [name for name, _ in found.pop("outside_files")]
        if names:
            found["outside_sets"] = names
        # Not written of classes, so that studies from before there were types go on.
        if self.source.task_type == RowsSource.task_type:
            del found["source"]["task_type"]
        del found["source"]["train_rows"]  # which is a run's; a study has its own
        if self.source.scoring is None:
            del found["source"]["scoring"]
        for settings, name in ((found, "splits"), (found["training"], "seeding"), (found, "draws")):
            if settings[name] == BEFORE[name]:
                del settings[name]
        # Which a method may change, classes do not have, or no study has.
        for name in ("head_learning_rate", "weight_decay_of", "likelihood_learning_rate", "micro_batch_size"):
            if found["training"][name] == getattr(FitOptions, name):
                del found["training"][name]
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def conventions_of(folder: Path) -> dict[str, str]:
    """How a study of version 0.1 goes on that is in a folder: what was so then, and is an option now."""
    try:
        found = read_json(folder / STUDY_FILE)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("training"), dict):
        return {}
    return {name: then for name, then in BEFORE.items() if name not in found and name not in found["training"]}


def _require_classes(option: str, all_rows: TaskRows, rows: Sequence[Row], taken: Sequence[Row]) -> None:
    """Raise where the first rows, in a file that is sorted by class say, lack a class that the others have."""
    column = all_rows.task.label_column
    if not all_rows.task.family.stratified:
        return
    lost = {row[column] for row in rows} - {row[column] for row in taken}
    if lost:
        named = ", ".join(sorted(map(str, lost)))
        raise DataError(
            f"{option} takes the first {len(taken)} of {len(rows)} rows, which have none of class {named}. Shuffle the "
            "file, or take more rows."
        )


@dataclass(frozen=True)
class StudyRows:
    """The rows of a study; `Study.split` divides those of the training split.

    `outside` has sets of rows from elsewhere by name, each with a task of its own; that of a built-in task is "".
    """

    task: Task
    train: list[Row]
    evaluated: list[Row]
    outside: Mapping[str, TaskRows]


@dataclass(frozen=True)
class EncodedRows:
    """A part of the rows as the networks read them; `lengths` says how much there is in each."""

    data: Encoded
    row_ids: tuple[str, ...]
    batch_size: int
    collate: Callable[[list[Any]], dict[str, Any]]
    lengths: Callable[[Any], Sequence[int]]

    @cached_property
    def by_length(self) -> list[int]:
        """Indices of the rows from the longest to the shortest: in batches of similar rows little is padding."""
        lengths = self.lengths(self.data)
        return sorted(range(len(lengths)), key=lambda row: -lengths[row])

    @classmethod
    def of(
        cls, task: Task, rows: Sequence[Row], processor: Any, study: Study, *, labelled: bool = True
    ) -> "EncodedRows":
        """Encode; out-of-distribution rows keep no labels, which would mean something else here."""
        data = encode(task, list(rows), processor, max_length=study.max_length, with_labels=labelled)
        ids, inputs = tuple(row_id(row, task.identity) for row in rows), task.family.inputs
        return cls(data, ids, study.training.batch_size, inputs.collate(processor), inputs.lengths)

    def halves(self) -> tuple["EncodedRows", "EncodedRows"]:
        """Every second row, and the others."""
        return self._part(range(0, len(self.row_ids), 2)), self._part(range(1, len(self.row_ids), 2))

    def first(self, count: int) -> "EncodedRows":
        """The first so many rows, or all."""
        return self._part(range(min(count, len(self.row_ids))))

    def _part(self, indices: range) -> "EncodedRows":
        ids = tuple(self.row_ids[index] for index in indices)
        return EncodedRows(self.data.select(indices), ids, self.batch_size, self.collate, self.lengths)

    def loader(self) -> "DataLoader[Any]":
        """In batches, by length; the global generator is left as it is."""
        own, rows = torch.Generator(), self.data.select(self.by_length)
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=self.collate, generator=own)

    def in_order(self, prediction: Any, likelihood: Likelihood) -> Any:
        """A prediction of `loader`, with the rows in their own order."""
        back = torch.tensor(self.by_length).argsort()
        labels = None if prediction.labels is None else prediction.labels[back]
        if isinstance(prediction, Prediction):
            own = None if prediction.foreignness is None else prediction.foreignness[back]
            return replace(prediction, logits=prediction.logits[:, back], labels=labels, foreignness=own)
        if isinstance(prediction, DrawnPrediction):
            of_draws: Any = prediction
            return replace(of_draws, logits=of_draws.logits[:, back], labels=labels)
        return likelihood.unpack(likelihood.pack(prediction)[:, back], labels)
