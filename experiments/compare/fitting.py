"""From a method and a seed to a predictor: what is trained, what is shared, and what is chosen on held-out rows."""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.base_models import BaseModel, load_base_model
from bayes_lora.experiments.compare.methods import Method
from bayes_lora.experiments.compare.study import EncodedRows, Study
from bayes_lora.experiments.lora import add_lora
from bayes_lora.experiments.outputs import write_json
from bayes_lora.experiments.point_files import DESCRIPTION_FILE, load_trained, save_trained
from bayes_lora.experiments.point_networks import PointNetwork, Way, fit_point, make_network
from bayes_lora.files import read_json
from bayes_lora.inference import (
    SWAG,
    Ensemble,
    FitOptions,
    LaplaceOptions,
    LaplacePredictor,
    MCDropout,
    MeanFieldGuide,
    MonteCLoRAGuide,
    PointEstimate,
    Predictor,
    SWAGCollector,
    SWAGPredictor,
    calibrate_scale,
    checkpoint_states,
    fit,
    fit_laplace,
    fit_network,
    load_posterior,
    predict,
    save_posterior,
    trainable_state,
    tune_prior_precision,
)
from bayes_lora.inference.laplace import tune_prior_precision_held_out
from bayes_lora.inference.randomness import seeded
from bayes_lora.models import BayesianLoRA

_CHECKPOINTS, _COST_FILE = "checkpoints", "cost.json"
_NUM_CHECKPOINTS = 10  # of a point estimate, over its whole training
_MEMBERS = {"checkpoint_ensemble": 5, "deep_ensemble": 3}
_MEMBER_SEEDS = 1000  # between the seeds of a deep ensemble's members, so that they are nobody else's
_SWAG_ITERATES = 20
_BLOB = {"temperature": 1e-2}
# Training everything at LoRA's learning rate destroys the base model.
_RATES = {"full": 5e-5, "adapter": 5e-4}


@dataclass(frozen=True)
class Fitted:
    """A method that is ready to predict.

    Attributes:
        predictor: what predicts.
        seconds: of all training and choosing that it needed, shared with other methods or not.
        chosen: what was chosen on held-out rows or by the evidence.
    """

    predictor: Predictor
    seconds: float
    chosen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitting:
    """Fits methods of one study; what one of them has trained, the others find in `folder`.

    Attributes:
        study: what they share.
        label_names: of the task.
        fit: rows to train on.
        held_out: rows to choose on.
        folder: where trained networks and checkpoints are kept.
        console: where progress bars go.
    """

    study: Study
    label_names: tuple[str, ...]
    fit: EncodedRows
    held_out: EncodedRows
    folder: Path
    console: Console | None = None

    def __call__(self, method: Method, seed: int) -> Fitted:
        """Train what has not been trained yet, and give the method's predictor, without temperature."""
        name = method.name
        if name in get_args(Way):
            point, seconds = self._point(method, seed)
            return Fitted(PointEstimate(point.network), seconds)
        return _BUILDERS[name](self, method, seed)

    def point(self, seed: int) -> tuple[PointNetwork, float]:
        """The point estimate that many methods start from, and the seconds it took."""
        return self._point(Method("map"), seed)

    def base(self, seed: int) -> BaseModel:
        """The base model, with the head of this seed."""
        with seeded(seed, torch.device("cpu")):
            return load_base_model(self.study.base_model, self.label_names)

    def place(self, method: Method, seed: int) -> Path:
        """The folder of what a method has trained, which its calibrated form shares."""
        return self.folder / Method(method.name, method.options).folder / f"seed-{seed}"

    def num_steps(self, options: FitOptions) -> int:
        """Of a training."""
        return options.epochs * math.ceil(len(self.fit.data) / options.batch_size)

    def posterior(
        self, method: Method, seed: int, network: Callable[[], Any], **changes: Any
    ) -> tuple[BayesianLoRA, MonteCLoRAGuide, float]:
        """Fit a MonteCLoRA posterior on a network, or load it; `changes` are of the options of the fit."""
        folder = self.place(method, seed)
        if (folder / "posterior").is_dir():
            return *load_posterior(self.base(seed).network, folder / "posterior"), _seconds(folder)
        with seeded(seed, torch.device("cpu")):
            model = BayesianLoRA(network(), self.posterior_config(method))
            guide = MonteCLoRAGuide(model)
        options = self.study.options(
            seed, **{**changes, **method.given("epochs", "learning_rate", "posterior_learning_rate")}
        )
        seconds = self._fit(model, guide, options, folder)
        write_json(folder / _COST_FILE, {"train_seconds": seconds})
        save_posterior(model, guide, folder / "posterior")
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
        return model, guide, seconds

    def posterior_config(self, method: Method, **defaults: Any) -> MonteCLoRAConfig:
        """The configuration that a method's options say."""
        names = set(MonteCLoRAConfig.__dataclass_fields__)
        given = {**defaults, **{name: value for name, value in method.options if name in names}}
        if given.get("objective") == "elbo":
            given["num_train_examples"] = len(self.fit.data)
        if method.name == "monteclora_sparse":
            given["mixture"] = "sparse"
        return MonteCLoRAConfig(**given)

    def mean_field(self, method: Method, seed: int) -> Fitted:
        """BLoB: train the mean-field posterior from the start; its last checkpoint is all that is kept of it."""
        config = self.posterior_config(method, objective="elbo", **_BLOB)
        with seeded(seed, torch.device("cpu")):
            model = BayesianLoRA(self._new_lora(seed), config)
            guide = MeanFieldGuide(model, **method.given("init_scale"))
        options = self.study.options(seed, **method.given("epochs", "learning_rate", "posterior_learning_rate"))
        seconds = self._fit(model, guide, options, self.place(method, seed))
        return self.predictive(method, seed, model, guide, seconds)

    def predictive(self, method: Method, seed: int, model: BayesianLoRA, guide: Any, seconds: float) -> Fitted:
        """The posterior predictive, after its scale has been chosen where the method says so."""
        if not (method.calibrated or method.name == "monteclora_calibrated"):
            return Fitted(partial(predict, model, guide), seconds)
        started = time.perf_counter()
        found = calibrate_scale(model, guide, self.held_out.loader(), seed=seed)
        chosen = {"sample_scale": found.scale}
        return Fitted(partial(predict, model, guide), seconds + time.perf_counter() - started, chosen)

    def _new_lora(self, seed: int) -> Any:
        base = self.base(seed)
        with seeded(seed, torch.device("cpu")):
            return add_lora(base.network, base.new_modules, self.study.lora)

    def _fit(self, model: BayesianLoRA, guide: Any, options: FitOptions, folder: Path) -> float:
        result = fit(
            model,
            guide,
            self.fit.data,
            options,
            collate=self.fit.collate,
            console=self.console,
            checkpoints=folder / _CHECKPOINTS,
        )
        return result.seconds

    def _point(self, method: Method, seed: int) -> tuple[PointNetwork, float]:
        way = "lora" if method.name == "map" else method.name
        base, folder = self.base(seed), self.place(method, seed)
        if (folder / "trained" / DESCRIPTION_FILE).is_file():
            return load_trained(base.network, folder / "trained"), _seconds(folder)
        point = make_network(way, base.network, base.new_modules, self.study.lora, seed=seed)  # type: ignore[arg-type]
        changes: dict[str, Any] = {"learning_rate": _RATES[way]} if way in _RATES else {}
        options = self.study.options(seed, **{**changes, **method.given("epochs", "learning_rate")})
        if method.name == "map":
            every = max(1, self.num_steps(options) // _NUM_CHECKPOINTS)
            options = self.study.options(seed, save_every=every, keep_checkpoints=None)
        result = fit_point(
            point,
            self.fit.data,
            options,
            collate=self.fit.collate,
            console=self.console,
            checkpoints=folder / _CHECKPOINTS,
        )
        write_json(folder / _COST_FILE, {"train_seconds": result.seconds})
        save_trained(point, folder / "trained")  # last: it says that all of this is there
        if method.name != "map":  # whose checkpoints are an ensemble
            shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
        return point, result.seconds


def _mc_dropout(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, seconds = fitting.point(seed)
    return Fitted(MCDropout(point.network, **method.given("probability")), seconds)


def _checkpoint_ensemble(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, seconds = fitting.point(seed)
    states = checkpoint_states(fitting.place(Method("map"), seed) / _CHECKPOINTS, point.network)
    return Fitted(Ensemble(point.network, states[-_members(method) :]), seconds)


def _deep_ensemble(fitting: Fitting, method: Method, seed: int) -> Fitted:
    trained = [fitting.point(seed + _MEMBER_SEEDS * member) for member in range(_members(method))]
    states = [trainable_state(point.network) for point, _ in trained]
    return Fitted(Ensemble(trained[0][0].network, states), sum(seconds for _, seconds in trained))


def _members(method: Method) -> int:
    members = method.given("members").get("members", _MEMBERS[method.name])
    if not isinstance(members, int) or members < 1:
        raise ConfigurationError(f"{method.label}: members={members!r} must be a whole number of at least 1.")
    return members


def _laplace(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, seconds = fitting.point(seed)
    parameters = "all" if method.name == "laplace" else "last_layer"
    given = dict(method.options)
    link, tuning = given.get("link", "monte_carlo"), given.get("tuning", "evidence")
    if tuning not in ("evidence", "held_out"):
        raise ConfigurationError(f"{method.label}: tuning={tuning!r} must be evidence or held_out.")
    started = time.perf_counter()
    options = LaplaceOptions(parameters, **method.given("structure"))
    posterior = fit_laplace(point.network, fitting.fit.loader(), options)
    if tuning == "evidence":
        posterior = tune_prior_precision(posterior)
    else:
        posterior = tune_prior_precision_held_out(
            point.network, posterior, fitting.held_out.loader(), link=link, seed=seed
        )
    seconds += time.perf_counter() - started
    chosen = {"prior_precision": posterior.prior_precision}
    return Fitted(LaplacePredictor(point.network, posterior, link), seconds, chosen)


def _swag(fitting: Fitting, method: Method, seed: int) -> Fitted:
    """Goes on from the point estimate, at a learning rate that stays."""
    point, seconds = fitting.point(seed)
    folder, study = fitting.place(method, seed), fitting.study
    path = folder / "swag.safetensors"
    if path.is_file():
        swag, own = SWAG.load(path), _seconds(folder)
    else:
        defaults = {"epochs": _quarter(study), "learning_rate": study.training.learning_rate / 2}
        options = study.options(
            seed, decay="constant", warmup_ratio=0.0, **{**defaults, **method.given("epochs", "learning_rate")}
        )
        every = max(1, fitting.num_steps(options) // _SWAG_ITERATES)
        collector = SWAGCollector(point.network, every=every, num_deviations=_SWAG_ITERATES)
        trained = fit_network(
            point.network,
            fitting.fit.data,
            options,
            collate=fitting.fit.collate,
            console=fitting.console,
            checkpoints=folder / _CHECKPOINTS,
            callbacks=[collector],
        )
        swag, own = collector.swag(), trained.seconds
        write_json(folder / _COST_FILE, {"train_seconds": own})
        swag.save(path)
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    return Fitted(SWAGPredictor(point.network, swag, **method.given("scale")), seconds + own)


def _monteclora(fitting: Fitting, method: Method, seed: int) -> Fitted:
    model, guide, seconds = fitting.posterior(method, seed, partial(fitting._new_lora, seed))
    return fitting.predictive(method, seed, model, guide, seconds)


def _posthoc(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, before = fitting.point(seed)
    changes = {"phases": "posterior", "epochs": _quarter(fitting.study)}
    model, guide, seconds = fitting.posterior(method, seed, lambda: point.network, **changes)
    return fitting.predictive(method, seed, model, guide, before + seconds)


def _calibrated(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, seconds = fitting.point(seed)
    model = BayesianLoRA(point.network, fitting.posterior_config(method))
    return fitting.predictive(method, seed, model, MonteCLoRAGuide(model), seconds)


def _quarter(study: Study) -> int:
    """Epochs of what goes on from a trained network."""
    return math.ceil(study.training.epochs / 4)


def _seconds(folder: Path) -> float:
    return float(read_json(folder / _COST_FILE)["train_seconds"])


def _map(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, seconds = fitting.point(seed)
    return Fitted(PointEstimate(point.network), seconds)


_BUILDERS: Mapping[str, Callable[[Fitting, Method, int], Fitted]] = {
    "map": _map,
    "mc_dropout": _mc_dropout,
    "checkpoint_ensemble": _checkpoint_ensemble,
    "deep_ensemble": _deep_ensemble,
    "laplace": _laplace,
    "laplace_last_layer": _laplace,
    "swag": _swag,
    "blob": Fitting.mean_field,
    "monteclora": _monteclora,
    "monteclora_sparse": _monteclora,
    "monteclora_posthoc": _posthoc,
    "monteclora_calibrated": _calibrated,
}
