"""What the methods of a study train, and share: networks, posteriors, and scales chosen on held-out rows."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.compare.cost import COST_FILE, Cost, Measured
from bayes_lora.experiments.compare.methods import FIT_OPTIONS, Method
from bayes_lora.experiments.compare.study import EncodedRows, Study
from bayes_lora.experiments.networks.base_models import BaseModel, load_base_model
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.inference import (
    FitOptions,
    FitResult,
    MonteCLoRAGuide,
    Predictor,
    calibrate_scale,
    fit,
    load_posterior,
    predict,
    save_posterior,
)
from bayes_lora.inference.finetuning.lora import add_lora
from bayes_lora.inference.finetuning.point_files import DESCRIPTION_FILE, load_trained, save_trained
from bayes_lora.inference.finetuning.point_networks import PointNetwork, fit_point, make_network
from bayes_lora.models import BayesianLoRA
from bayes_lora.precision import mixed_precision
from bayes_lora.randomness import seeded

CHECKPOINTS = "checkpoints"
_NUM_CHECKPOINTS = 10  # of a point estimate, over its whole training
# Training everything at LoRA's learning rate destroys the base model.
_RATES = {"full": 5e-5, "adapter": 5e-4}


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
        label_names: of the task.
        fit: rows to train on.
        held_out: rows to choose on.
        folder: where trained networks and checkpoints are kept.
        console: where progress bars go.
        device: where networks train and predict; they are made on the CPU, the same for every device.
    """

    study: Study
    label_names: tuple[str, ...]
    fit: EncodedRows
    held_out: EncodedRows
    folder: Path
    console: Console | None = None
    device: torch.device = CPU

    def point(self, seed: int) -> tuple[PointNetwork, Cost]:
        """The point estimate that many methods start from, and what it cost."""
        return self.train_point(Method("map"), seed)

    def has_point(self, seed: int) -> bool:
        """Whether that has been trained, and is still there."""
        return (self.place(Method("map"), seed) / "trained" / DESCRIPTION_FILE).is_file()

    def precision(self) -> torch.autocast:
        """Around predictions: the study's."""
        return mixed_precision(self.study.training.precision, self.device)

    def base(self, seed: int) -> BaseModel:
        """The base model on the CPU, with the head of this seed."""
        with seeded(seed, CPU):
            return load_base_model(self.study.base_model, self.label_names)

    def place(self, method: Method, seed: int) -> Path:
        """The folder of what a method has trained, see `Method.training`."""
        return self.folder / method.training.folder / f"seed-{seed}"

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

    def posterior(
        self, method: Method, seed: int, network: Callable[[], Any], **changes: Any
    ) -> tuple[BayesianLoRA, MonteCLoRAGuide, Cost]:
        """Fit a MonteCLoRA posterior on a network, or load it; `changes` are of the options of the fit."""
        folder = self.place(method, seed)
        if (folder / "posterior").is_dir():
            model, guide = load_posterior(self.base(seed).network, folder / "posterior")
            return model.to(self.device), guide.to(self.device), Cost.read(folder)
        with seeded(seed, CPU):
            model = BayesianLoRA(network(), self.posterior_config(method)).to(self.device)
            guide = MonteCLoRAGuide(model)
        options = self.study.options(seed, **{**changes, **method.given(*FIT_OPTIONS)})
        cost = self.train(partial(fit, model, guide), method, options)
        save_posterior(model, guide, folder / "posterior")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return model, guide, cost

    def posterior_config(self, method: Method, **defaults: Any) -> MonteCLoRAConfig:
        """The configuration that a method's options say."""
        names = set(MonteCLoRAConfig.__dataclass_fields__)
        given = {**defaults, **{name: value for name, value in method.options if name in names}}
        if given.get("objective") == "elbo":
            given["num_train_examples"] = len(self.fit.data)
        if method.name == "monteclora_sparse":
            given["mixture"] = "sparse"
        return MonteCLoRAConfig(**given)

    def predictive(self, method: Method, seed: int, model: BayesianLoRA, guide: Any, cost: Cost) -> Fitted:
        """The posterior predictive, or that at its mean; after its scale has been chosen where the method says so."""
        if method.at_mean:
            return Fitted(partial(predict, model, guide, at_mean=True), cost)
        if not (method.calibrated or method.name == "monteclora_calibrated"):
            return Fitted(partial(predict, model, guide), cost)
        draws = max(2, self.study.num_samples)  # as many as will predict: the best scale depends on it
        with Measured() as choosing, self.precision():
            found = calibrate_scale(model, guide, self.held_out.loader(), num_samples=draws, seed=seed)
        return Fitted(partial(predict, model, guide), cost + choosing.cost, {"sample_scale": found.scale})

    def new_lora(self, seed: int) -> Any:
        """The base model with new adapters, both of this seed, on the CPU."""
        base = self.base(seed)
        with seeded(seed, CPU):
            return add_lora(base.network, base.new_modules, self.study.lora)

    def train(self, fitting: Callable[..., FitResult], method: Method, options: FitOptions) -> Cost:
        """Call `fitting` on the rows, on from its last checkpoint; returns what it cost, whenever that was."""
        folder = self.place(method, options.seed)
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
        cost.write(folder)
        return cost

    def train_point(self, method: Method, seed: int) -> tuple[PointNetwork, Cost]:
        """A network trained in the way that the method names, or what it left when it was trained before."""
        way = "lora" if method.name == "map" else method.name
        base, folder = self.base(seed), self.place(method, seed)
        if (folder / "trained" / DESCRIPTION_FILE).is_file():
            point = load_trained(base.network, folder / "trained")
            point.network.to(self.device)
            return point, Cost.read(folder)
        point = make_network(way, base.network, base.new_modules, self.study.lora, seed=seed)  # type: ignore[arg-type]
        point.network.to(self.device)
        changes: dict[str, Any] = {"learning_rate": _RATES[way]} if way in _RATES else {}
        options = self.study.options(seed, **{**changes, **method.given(*FIT_OPTIONS)})
        if method.name == "map":
            options = replace(options, save_every=self.checkpoint_every(options), keep_checkpoints=None)
        cost = self.train(partial(fit_point, point), method, options)
        save_trained(point, folder / "trained")  # last: it says that all of this is there
        if method.name != "map":  # whose checkpoints are an ensemble
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return point, cost
