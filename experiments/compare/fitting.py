"""From a method and a seed to a predictor: what is trained, what is shared, and what is chosen on held-out rows."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from bayes_lora.checks import require_choice, require_positive
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.base_models import BaseModel, load_base_model
from bayes_lora.experiments.compare.cost import COST_FILE, Cost, Measured
from bayes_lora.experiments.compare.methods import Method
from bayes_lora.experiments.compare.study import EncodedRows, Study
from bayes_lora.experiments.lora import add_lora
from bayes_lora.experiments.point_files import DESCRIPTION_FILE, load_trained, save_trained
from bayes_lora.experiments.point_networks import PointNetwork, Way, fit_point, make_network
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

_CHECKPOINTS = "checkpoints"
_NUM_CHECKPOINTS = 10  # of a point estimate, over its whole training
_MEMBERS = {"checkpoint_ensemble": 5, "deep_ensemble": 3}
_MEMBER_SEEDS = 1000  # between the seeds of a deep ensemble's members, so that they are nobody else's
_SWAG_ITERATES = 20
# Those of the method's published code, but for the temperature, which it anneals.
_BLOB_PRIOR, _BLOB_START = {"temperature": 1e-2, "prior_scale": 0.2}, {"init_scale": 2e-3}
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
            point, cost = self._point(method, seed)
            return Fitted(PointEstimate(point.network), cost)
        return _BUILDERS[name](self, method, seed)

    def check(self, method: Method) -> None:
        """Whether its options can have the values they have, asked before anything is trained.

        Raises:
            ConfigurationError: one cannot.
        """
        own = method.given("epochs", "learning_rate", "posterior_learning_rate")
        self.study.options(0, **own)
        if method.name.startswith("monteclora"):
            self.posterior_config(method)
        elif method.name == "blob":
            self.posterior_config(method, objective="elbo", **_BLOB_PRIOR)
        elif method.name.startswith("laplace"):
            _laplace_options(method)
        elif method.name in _MEMBERS:
            _members(method)
        elif (
            method.name == "mc_dropout"
            and not 0 < method.given("probability").get("probability", self.study.lora.dropout) < 1
        ):
            raise ConfigurationError(
                f"{method.label} needs dropout above 0 and below 1. Train with --lora-dropout 0.1, or write "
                "mc_dropout[probability=0.1]."
            )
        for name, value in method.given("scale", "init_scale").items():
            require_positive(f"{method.label}: {name}", value)

    def point(self, seed: int) -> tuple[PointNetwork, Cost]:
        """The point estimate that many methods start from, and what it cost."""
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
    ) -> tuple[BayesianLoRA, MonteCLoRAGuide, Cost]:
        """Fit a MonteCLoRA posterior on a network, or load it; `changes` are of the options of the fit."""
        folder = self.place(method, seed)
        if (folder / "posterior").is_dir():
            return *load_posterior(self.base(seed).network, folder / "posterior"), Cost.read(folder)
        with seeded(seed, torch.device("cpu")):
            model = BayesianLoRA(network(), self.posterior_config(method))
            guide = MonteCLoRAGuide(model)
        options = self.study.options(
            seed, **{**changes, **method.given("epochs", "learning_rate", "posterior_learning_rate")}
        )
        cost = self._fit(model, guide, options, folder)
        cost.write(folder)
        save_posterior(model, guide, folder / "posterior")
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
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

    def mean_field(self, method: Method, seed: int) -> Fitted:
        """BLoB: train the mean-field posterior from the start; its last checkpoint is all that is kept of it."""
        config = self.posterior_config(method, objective="elbo", **_BLOB_PRIOR)
        with seeded(seed, torch.device("cpu")):
            model = BayesianLoRA(self._new_lora(seed), config)
            guide = MeanFieldGuide(model, **{**_BLOB_START, **method.given("init_scale")})
        options = self.study.options(seed, **method.given("epochs", "learning_rate", "posterior_learning_rate"))
        folder = self.place(method, seed)
        cost = self._fit(model, guide, options, folder)
        if (folder / COST_FILE).is_file():  # it was trained before, and only loaded now
            cost = Cost.read(folder)
        cost.write(folder)
        return self.predictive(method, seed, model, guide, cost)

    def predictive(self, method: Method, seed: int, model: BayesianLoRA, guide: Any, cost: Cost) -> Fitted:
        """The posterior predictive, after its scale has been chosen where the method says so."""
        if not (method.calibrated or method.name == "monteclora_calibrated"):
            return Fitted(partial(predict, model, guide), cost)
        draws = max(2, self.study.num_samples)  # as many as will predict: the best scale depends on it
        with Measured() as choosing:
            found = calibrate_scale(model, guide, self.held_out.loader(), num_samples=draws, seed=seed)
        return Fitted(partial(predict, model, guide), cost + choosing.cost, {"sample_scale": found.scale})

    def _new_lora(self, seed: int) -> Any:
        base = self.base(seed)
        with seeded(seed, torch.device("cpu")):
            return add_lora(base.network, base.new_modules, self.study.lora)

    def _fit(self, model: BayesianLoRA, guide: Any, options: FitOptions, folder: Path) -> Cost:
        with Measured() as training:
            fit(
                model,
                guide,
                self.fit.data,
                options,
                collate=self.fit.collate,
                console=self.console,
                checkpoints=folder / _CHECKPOINTS,
            )
        return training.cost

    def _point(self, method: Method, seed: int) -> tuple[PointNetwork, Cost]:
        way = "lora" if method.name == "map" else method.name
        base, folder = self.base(seed), self.place(method, seed)
        if (folder / "trained" / DESCRIPTION_FILE).is_file():
            return load_trained(base.network, folder / "trained"), Cost.read(folder)
        point = make_network(way, base.network, base.new_modules, self.study.lora, seed=seed)  # type: ignore[arg-type]
        changes: dict[str, Any] = {"learning_rate": _RATES[way]} if way in _RATES else {}
        options = self.study.options(seed, **{**changes, **method.given("epochs", "learning_rate")})
        if method.name == "map":
            # Up, not down: the last step is saved in any case, and may not follow the one before at once.
            every = math.ceil(self.num_steps(options) / _NUM_CHECKPOINTS)
            options = self.study.options(seed, save_every=every, keep_checkpoints=None)
        with Measured() as training:
            fit_point(
                point,
                self.fit.data,
                options,
                collate=self.fit.collate,
                console=self.console,
                checkpoints=folder / _CHECKPOINTS,
            )
        training.cost.write(folder)
        save_trained(point, folder / "trained")  # last: it says that all of this is there
        if method.name != "map":  # whose checkpoints are an ensemble
            shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
        return point, training.cost


def _mc_dropout(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    return Fitted(MCDropout(point.network, **method.given("probability")), cost)


def _checkpoint_ensemble(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    states = checkpoint_states(fitting.place(Method("map"), seed) / _CHECKPOINTS, point.network)
    if len(states) < _members(method):
        raise ConfigurationError(
            f"{method.label}: the point estimate kept {len(states)} checkpoints, fewer than the {_members(method)} "
            "members. Ask for fewer."
        )
    return Fitted(Ensemble(point.network, states[-_members(method) :]), cost)


def _deep_ensemble(fitting: Fitting, method: Method, seed: int) -> Fitted:
    trained = [fitting.point(seed + _MEMBER_SEEDS * member) for member in range(_members(method))]
    states = [trainable_state(point.network) for point, _ in trained]
    return Fitted(Ensemble(trained[0][0].network, states), sum((cost for _, cost in trained), Cost()))


def _members(method: Method) -> int:
    members = method.given("members").get("members", _MEMBERS[method.name])
    if not isinstance(members, int) or members < 1:
        raise ConfigurationError(f"{method.label}: members={members!r} must be a whole number of at least 1.")
    return members


def _laplace(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    options, link, tuning = _laplace_options(method)
    with Measured() as fitted:
        posterior = fit_laplace(point.network, fitting.fit.loader(), options)
        if tuning == "evidence":
            posterior = tune_prior_precision(posterior)
        else:
            draws = fitting.study.num_samples
            posterior = tune_prior_precision_held_out(
                point.network, posterior, fitting.held_out.loader(), link=link, num_samples=draws, seed=seed
            )
    chosen = {"prior_precision": posterior.prior_precision}
    return Fitted(LaplacePredictor(point.network, posterior, link), cost + fitted.cost, chosen)


def _laplace_options(method: Method) -> tuple[LaplaceOptions, str, str]:
    """Options, link and tuning."""
    given = dict(method.options)
    link, tuning = given.get("link", "monte_carlo"), given.get("tuning", "evidence")
    require_choice(f"{method.label}: link", link, ("monte_carlo", "probit"))
    require_choice(f"{method.label}: tuning", tuning, ("evidence", "held_out"))
    parameters = "all" if method.name == "laplace" else "last_layer"
    return LaplaceOptions(parameters, **method.given("structure")), link, tuning


def _swag(fitting: Fitting, method: Method, seed: int) -> Fitted:
    """Goes on from the point estimate, at a learning rate that stays."""
    point, cost = fitting.point(seed)
    folder = fitting.place(method, seed)
    path = folder / "swag.safetensors"
    if path.is_file():
        swag, own = SWAG.load(path), Cost.read(folder)
    else:
        options = _swag_options(fitting.study, method, seed)
        every = max(1, fitting.num_steps(options) // _SWAG_ITERATES)
        collector = SWAGCollector(point.network, every=every, num_deviations=_SWAG_ITERATES)
        with Measured() as training:
            fit_network(
                point.network,
                fitting.fit.data,
                options,
                collate=fitting.fit.collate,
                console=fitting.console,
                checkpoints=folder / _CHECKPOINTS,
                callbacks=[collector],
            )
        swag, own = collector.swag(), training.cost
        own.write(folder)
        swag.save(path)
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    return Fitted(SWAGPredictor(point.network, swag, **method.given("scale")), cost + own)


def _swag_options(study: Study, method: Method, seed: int) -> FitOptions:
    defaults = {"epochs": _quarter(study), "learning_rate": study.training.learning_rate / 2}
    given = {**defaults, **method.given("epochs", "learning_rate")}
    return study.options(seed, decay="constant", warmup_ratio=0.0, **given)


def _monteclora(fitting: Fitting, method: Method, seed: int) -> Fitted:
    model, guide, cost = fitting.posterior(method, seed, partial(fitting._new_lora, seed))
    return fitting.predictive(method, seed, model, guide, cost)


def _posthoc(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, before = fitting.point(seed)
    changes = {"phases": "posterior", "epochs": _quarter(fitting.study)}
    model, guide, cost = fitting.posterior(method, seed, lambda: point.network, **changes)
    return fitting.predictive(method, seed, model, guide, before + cost)


def _calibrated(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    model = BayesianLoRA(point.network, fitting.posterior_config(method))
    return fitting.predictive(method, seed, model, MonteCLoRAGuide(model), cost)


def _quarter(study: Study) -> int:
    """Epochs of what goes on from a trained network."""
    return math.ceil(study.training.epochs / 4)


def _map(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    return Fitted(PointEstimate(point.network), cost)


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
