"""From a method and a seed to a predictor."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from typing import get_args

import torch

from bayes_lora.checks import require_choice, require_positive
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.cost import Cost, Measured
from bayes_lora.experiments.compare.fitting import CHECKPOINTS, Fitted, Fitting
from bayes_lora.experiments.compare.methods import FIT_OPTIONS, Method
from bayes_lora.experiments.compare.study import Study
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.inference import (
    SWAG,
    BaseRate,
    Ensemble,
    FitOptions,
    LaplaceOptions,
    LaplacePredictor,
    MCDropout,
    MeanFieldGuide,
    MonteCLoRAGuide,
    PointEstimate,
    SWAGCollector,
    SWAGPredictor,
    checkpoint_states,
    fit,
    fit_laplace,
    fit_network,
    load_laplace,
    save_laplace,
    trainable_state,
    tune_prior_precision,
)
from bayes_lora.inference.finetuning.point_networks import Way
from bayes_lora.inference.predictors.laplace import tune_prior_precision_held_out
from bayes_lora.metrics.classification import negative_log_likelihood
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import seeded

_MEMBERS = {"checkpoint_ensemble": 5, "deep_ensemble": 3}
_MEMBER_SEEDS = 1000  # between the seeds of a deep ensemble's members; the first is the point estimate itself
_SWAG_ITERATES = 20
# Those of the method's published code, but for the temperature, which it anneals.
_BLOB_PRIOR, _BLOB_START = {"temperature": 1e-2, "prior_scale": 0.2}, {"init_scale": 2e-3}
# From there to the standard deviations that it ends with is a long way for a few hundred steps of the usual size.
_BLOB_RATE = {"posterior_learning_rate": 3e-2}


def build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    """Train what has not been trained yet, and give the method's predictor, without temperature."""
    return _BUILDERS[method.name](fitting, method, seed)


def check(fitting: Fitting, method: Method) -> None:
    """Whether a method's options can have the values they have, asked before anything is trained.

    Raises:
        ConfigurationError: one cannot.
    """
    fitting.study.options(0, **method.given(*FIT_OPTIONS))
    if method.name.startswith("monteclora"):
        fitting.posterior_config(method)
    elif method.name == "blob":
        fitting.posterior_config(method, objective="elbo", **_BLOB_PRIOR)
    elif method.name.startswith("laplace"):
        _laplace_options(method)
    elif method.name == "mc_dropout":
        probability = method.given("probability").get("probability", fitting.study.lora.dropout)
        if not (isinstance(probability, int | float) and 0 < probability < 1):
            raise ConfigurationError(
                f"{method.label} needs dropout above 0 and below 1. Train with --lora-dropout 0.1, or write "
                "mc_dropout[probability=0.1]."
            )
    elif method.name == "checkpoint_ensemble":
        if _members(method) > fitting.num_checkpoints:
            raise ConfigurationError(
                f"{method.label} needs {_members(method)} checkpoints, and the point estimate keeps "
                f"{fitting.num_checkpoints}. Ask for fewer members."
            )
    elif method.name == "deep_ensemble":
        members = [_member_seed(seed, member) for seed in fitting.study.seeds for member in range(_members(method))]
        if len(set(members)) < len(members):
            raise ConfigurationError(
                f"the ensembles of --seeds {','.join(map(str, fitting.study.seeds))} would share members, which are "
                f"trained {_MEMBER_SEEDS} seeds apart. Choose seeds that are closer together, such as 0,1,2."
            )
    for name, value in method.given("scale", "init_scale").items():
        require_positive(f"{method.label}: {name}", value)


def _base_rate(fitting: Fitting, method: Method, seed: int) -> Fitted:
    with Measured() as counting:
        predictor = BaseRate(torch.tensor(fitting.fit.data["labels"]), len(fitting.label_names))
    return Fitted(predictor, counting.cost)


def _point_estimate(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.train_point(method, seed)
    return Fitted(PointEstimate(point.network), cost)


def _early_stopping(fitting: Fitting, method: Method, seed: int) -> Fitted:
    """The checkpoint of the point estimate that has the least NLL on held-out rows."""
    point, cost = fitting.point(seed)
    members = [
        Ensemble(point.network, [state])
        for state in checkpoint_states(fitting.place(Method("map"), seed) / CHECKPOINTS, point.network)
    ]
    with Measured() as choosing, fitting.precision():
        predictions = [member(fitting.held_out.loader()) for member in members]
    nlls = [negative_log_likelihood(found.mean_probs, found.labels) for found in predictions]  # type: ignore[arg-type]
    best = nlls.index(min(nlls))
    return Fitted(members[best], cost + choosing.cost, {"checkpoint": best + 1})


def _mc_dropout(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    return Fitted(MCDropout(point.network, **method.given("probability")), cost)


def _checkpoint_ensemble(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    states = checkpoint_states(fitting.place(Method("map"), seed) / CHECKPOINTS, point.network)
    if len(states) < _members(method):
        raise ConfigurationError(
            f"{method.label}: the point estimate kept {len(states)} checkpoints, fewer than the {_members(method)} "
            "members. Ask for fewer."
        )
    return Fitted(Ensemble(point.network, states[-_members(method) :]), cost)


def _deep_ensemble(fitting: Fitting, method: Method, seed: int) -> Fitted:
    trained = [fitting.point(_member_seed(seed, member)) for member in range(_members(method))]
    states = [trainable_state(point.network) for point, _ in trained]
    return Fitted(Ensemble(trained[0][0].network, states), sum((cost for _, cost in trained), Cost()))


def _member_seed(seed: int, member: int) -> int:
    return seed + _MEMBER_SEEDS * member


def _members(method: Method) -> int:
    members = method.given("members").get("members", _MEMBERS[method.name])
    if not isinstance(members, int) or members < 1:
        raise ConfigurationError(f"{method.label}: members={members!r} must be a whole number of at least 1.")
    return members


def _laplace(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    options, link, tuning = _laplace_options(method)
    folder = fitting.place(method, seed)
    path = folder / "laplace.safetensors"
    if path.is_file():
        posterior, own = load_laplace(point.network, path), Cost.read(folder)
    else:
        with Measured() as fitted:
            posterior = fit_laplace(point.network, fitting.fit.loader(), options)
        own = fitted.cost
        folder.mkdir(parents=True, exist_ok=True)
        own.write(folder)
        save_laplace(posterior, path)
    with Measured() as tuned:
        if tuning == "evidence":
            posterior = tune_prior_precision(posterior)
        else:
            draws = fitting.study.num_samples
            posterior = tune_prior_precision_held_out(
                point.network, posterior, fitting.held_out.loader(), link=link, num_samples=draws, seed=seed
            )
    chosen = {"prior_precision": posterior.prior_precision}
    return Fitted(LaplacePredictor(point.network, posterior, link), cost + own + tuned.cost, chosen)


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
        own = fitting.train(partial(fit_network, point.network, callbacks=[collector]), method, options)
        swag = collector.swag()
        swag.save(path)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return Fitted(SWAGPredictor(point.network, swag, **method.given("scale")), cost + own)


def _swag_options(study: Study, method: Method, seed: int) -> FitOptions:
    defaults = {"epochs": _quarter(study), "learning_rate": study.training.learning_rate / 2}
    given = {**defaults, **method.given(*FIT_OPTIONS)}
    return study.options(seed, decay="constant", warmup_ratio=0.0, **given)


def _monteclora(fitting: Fitting, method: Method, seed: int) -> Fitted:
    model, guide, cost = fitting.posterior(method, seed, partial(fitting.new_lora, seed))
    return fitting.predictive(method, seed, model, guide, cost)


def _mean_field(fitting: Fitting, method: Method, seed: int) -> Fitted:
    """BLoB: train the mean-field posterior from the start; its last checkpoint is all that is kept of it."""
    config = fitting.posterior_config(method, objective="elbo", **_BLOB_PRIOR)
    with seeded(seed, CPU):
        model = BayesianLoRA(fitting.new_lora(seed), config).to(fitting.device)
        guide = MeanFieldGuide(model, **{**_BLOB_START, **method.given("init_scale")})
    rates = {**_BLOB_RATE, **method.given(*FIT_OPTIONS)}
    options = fitting.study.options(seed, **rates)
    cost = fitting.train(partial(fit, model, guide), method, options)
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
    return ceil(study.training.epochs / 4)


_BUILDERS: Mapping[str, Callable[[Fitting, Method, int], Fitted]] = {
    "base_rate": _base_rate,
    **dict.fromkeys(("map", *get_args(Way)), _point_estimate),
    "early_stopping": _early_stopping,
    "mc_dropout": _mc_dropout,
    "checkpoint_ensemble": _checkpoint_ensemble,
    "deep_ensemble": _deep_ensemble,
    "laplace": _laplace,
    "laplace_last_layer": _laplace,
    "swag": _swag,
    "blob": _mean_field,
    "monteclora": _monteclora,
    "monteclora_sparse": _monteclora,
    "monteclora_posthoc": _posthoc,
    "monteclora_calibrated": _calibrated,
}
