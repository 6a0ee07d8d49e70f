"""Training for the methods of a study: they share the point estimate, and what was trained is found again."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from bayes_lora.experiments.compare.cost import COST_FILE, Cost, Measured
from bayes_lora.experiments.compare.study import EncodedRows, Study
from bayes_lora.experiments.networks.base_models import BaseModel, load_base_model
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.experiments.tasks.tasks import Task
from bayes_lora.files import write_json
from bayes_lora.inference import FitOptions, FitResult, Predictor, checkpoint_states
from bayes_lora.inference.finetuning.lora import add_lora
from bayes_lora.inference.finetuning.point_files import DESCRIPTION_FILE, load_trained, save_trained
from bayes_lora.inference.finetuning.point_networks import PointNetwork, Way, fit_point, make_network
from bayes_lora.models import Classification, Likelihood
from bayes_lora.precision import mixed_precision
from bayes_lora.randomness import Part, seeded

POINT, CHECKPOINTS = "map", "checkpoints"
HISTORY_FILE = "history.json"
"""Of a training, beside its cost: the entries of `FitResult.history`."""

_TRAINED = "trained"
_NUM_CHECKPOINTS = 10  # of a point estimate, over its whole training


@dataclass(frozen=True)
class Fitted:
    """A method that is ready to predict.

    Attributes:
        predictor: what predicts.
        cost: of all training and choosing that it needed, shared with other methods or not.
        chosen: what was chosen on held-out rows or by the evidence.
    """

    predictor: Predictor
    cost: Cost
    chosen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitting:
    """Trains for the methods of one study; what one of them has trained, the others find in `folder`.

    Attributes:
        study: what they share.
        task: of the rows.
        fit: rows to train on.
        held_out: rows to choose on.
        folder: where trained networks and checkpoints are kept.
        console: where progress bars go.
        device: where networks train and predict; they are made on the CPU, the same for every device.
    """

    study: Study
    task: Task
    fit: EncodedRows
    held_out: EncodedRows
    folder: Path
    console: Console | None = None
    device: torch.device = CPU

    def point(self, seed: int) -> tuple[PointNetwork, Cost]:
        """The point estimate that many methods start from, and what it cost."""
        return self.train_point("lora", self.place(POINT, seed), seed, keep_checkpoints=True)

    def has_point(self, seed: int) -> bool:
        """Whether that has been trained, and is still there."""
        return (self.place(POINT, seed) / _TRAINED / DESCRIPTION_FILE).is_file()

    def point_checkpoints(self, point: PointNetwork, seed: int) -> list[dict[str, Tensor]]:
        """What its training passed through, the earliest first; it has been trained."""
        return checkpoint_states(self.place(POINT, seed) / CHECKPOINTS, point.network)

    def precision(self) -> torch.autocast:
        """Around predictions: the study's."""
        return mixed_precision(self.study.training.precision, self.device)

    def base(self, seed: int) -> BaseModel:
        """The base model on the CPU, with the head of this seed."""
        with seeded(self.study.options(seed).seed_of(Part.HEAD), CPU):
            return load_base_model(self.study.base_model, self.task.label_names, self.task.task_type)

    def likelihood(self, network: Any) -> Likelihood:
        """Of the network's outputs, where the training labels alone put it."""
        found = self.task.family.likelihood(network, self.task.label_names)
        if found.state_dict():
            found.start_at(torch.tensor(self.fit.data["labels"]))
        return found

    def num_observations(self, likelihood: Likelihood) -> int:
        """What the KL of objective "elbo" is weighed by: training rows, or what the likelihood counts in them."""
        return likelihood.num_observations_in(self.fit.data) or len(self.fit.data)

    def place(self, name: str, seed: int) -> Path:
        """The folder of what was trained under a name: for a method it is that of `Method.training`."""
        return self.folder / name / f"seed-{seed}"

    def num_steps(self, options: FitOptions) -> int:
        """Of a training."""
        return options.epochs * math.ceil(len(self.fit.data) / options.batch_size)

    def checkpoint_every(self, options: FitOptions) -> int:
        """Steps between the checkpoints of a point estimate."""
        # Up, not down: the last step is saved in any case, and may not follow the one before at once.
        return math.ceil(self.num_steps(options) / _NUM_CHECKPOINTS)

    @property
    def num_checkpoints(self) -> int:
        """That the point estimate of the study keeps."""
        options = self.study.training
        return math.ceil(self.num_steps(options) / self.checkpoint_every(options))

    def new_lora(self, seed: int) -> Any:
        """The base model with new adapters, both of this seed, on the CPU."""
        base = self.base(seed)
        with seeded(self.study.options(seed).seed_of(Part.ADAPTERS), CPU):
            return add_lora(base.network, base.new_modules, self.study.lora)

    def train(self, fitting: Callable[..., FitResult], folder: Path, options: FitOptions) -> Cost:
        """Call `fitting` on the rows, on from its last checkpoint in a folder; its cost, whenever it was trained."""
        with Measured() as training:
            result = fitting(
                self.fit.data,
                options,
                collate=self.fit.collate,
                console=self.console,
                checkpoints=folder / CHECKPOINTS,
            )
        if (folder / COST_FILE).is_file():  # it was trained before, and only loaded now
            return Cost.read(folder)
        cost = replace(training.cost, seconds=result.seconds)
        write_json(folder / HISTORY_FILE, result.history)
        cost.write(folder)
        return cost

    def new_point(self, way: Way, seed: int, **options: Any) -> PointNetwork:
        """A network as it is before it is trained in some way, on the device; `options` are of `make_network`."""
        base = self.base(seed)
        likelihood: Likelihood | None = self.likelihood(base.network)
        if type(likelihood) is Classification:  # the network's own loss
            likelihood = None
        start = self.study.options(seed).seed_of(Part.ADAPTERS)
        point = make_network(
            way, base.network, base.new_modules, self.study.lora, likelihood=likelihood, seed=start, **options
        )
        point.network.to(self.device)
        return point

    def train_point(
        self,
        way: Way,
        folder: Path,
        seed: int,
        *,
        keep_checkpoints: bool = False,
        made_with: Mapping[str, Any] = MappingProxyType({}),
        **changes: Any,
    ) -> tuple[PointNetwork, Cost]:
        """A network trained in some way, or what that left in the folder when it was trained before.

        Args:
            way: of training it.
            folder: of what it trains.
            seed: of everything random.
            keep_checkpoints: ten of them, instead of none when it is done.
            made_with: other options of `make_network`.
            changes: of the study's training.
        """
        if (folder / _TRAINED / DESCRIPTION_FILE).is_file():
            point = load_trained(self.base(seed).network, folder / _TRAINED)
            point.network.to(self.device)
            return point, Cost.read(folder)
        options = self.study.options(seed, **changes)
        point = self.new_point(way, seed, **made_with)
        if keep_checkpoints:
            options = replace(options, save_every=self.checkpoint_every(options), keep_checkpoints=None)
        cost = self.train(partial(fit_point, point), folder, options)
        save_trained(point, folder / _TRAINED)  # last: it says that all of this is there
        if not keep_checkpoints:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return point, cost
