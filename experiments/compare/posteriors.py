"""What the methods with a posterior share: fitting it on the rows of a study, its predictive, its scale."""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.compare.cost import Cost, Measured
from bayes_lora.experiments.compare.fitting import CHECKPOINTS, Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.training_options import OF_ROWS
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.inference import (
    FitOptions,
    MonteCLoRAGuide,
    calibrate_scale,
    fit,
    load_posterior,
    predict,
    save_posterior,
)
from bayes_lora.inference.finetuning.point_networks import PointNetwork
from bayes_lora.models import BayesianLoRA, Likelihood, LikelihoodNetwork
from bayes_lora.randomness import Part, seeded


def posterior_config(fitting: Fitting, method: Method, **fixed: Any) -> MonteCLoRAConfig:
    """The configuration that a method's options say.

    Args:
        fitting: of the study.
        method: with options of `MonteCLoRAConfig`.
        fixed: what the method leaves nobody a choice of.

    Raises:
        ConfigurationError: an option has a value that it cannot have, or belongs to the other objective.
    """
    given = {**method.values_of(MonteCLoRAConfig), **fixed}
    if given.get("init_concentration") == OF_ROWS:
        given["init_concentration"] = float(len(fitting.fit.data))
    if given.get("objective") == "elbo":
        given["num_train_examples"] = fitting.num_observations(fitting.likelihood(nn.Module()))
    return MonteCLoRAConfig(**given)


def fit_posterior(
    fitting: Fitting,
    method: Method,
    seed: int,
    start: Callable[[], tuple[Any, Likelihood]],
    config: MonteCLoRAConfig,
    **changes: Any,
) -> tuple[BayesianLoRA, MonteCLoRAGuide, Cost]:
    """Fit a MonteCLoRA posterior on a network with a likelihood, or load it; `changes` are of the study's training."""
    folder = fitting.place(method.training.folder, seed)
    if (folder / "posterior").is_dir():
        model, guide = load_posterior(fitting.base(seed).network, folder / "posterior")
        return model.to(fitting.device), guide.to(fitting.device), Cost.read(folder)
    options = fitting.study.options(seed, **{**changes, **method.values_of(FitOptions)})
    with seeded(options.seed_of(Part.GUIDE), CPU):
        network, likelihood = start()
        model = BayesianLoRA(network, config, likelihood).to(fitting.device)
        guide = MonteCLoRAGuide(model)
    cost = fitting.train(partial(fit, model, guide), folder, options)
    save_posterior(model, guide, folder / "posterior")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return model, guide, cost


def new_start(fitting: Fitting, seed: int) -> tuple[Any, Likelihood]:
    """A network with new adapters, and the likelihood at its start."""
    network = fitting.new_lora(seed)
    return network, fitting.likelihood(network)


def trained_start(fitting: Fitting, point: PointNetwork) -> tuple[Any, Likelihood]:
    """The network of a point estimate, and its likelihood, as they were trained."""
    if isinstance(point.network, LikelihoodNetwork):
        return point.network.network, point.network.likelihood
    return point.network, fitting.likelihood(point.network)


def predictive(fitting: Fitting, method: Method, seed: int, model: BayesianLoRA, guide: Any, cost: Cost) -> Fitted:
    """The posterior predictive, or that at its mean; after its scale has been chosen where the method says so."""
    if method.at_mean:
        return Fitted(partial(predict, model, guide, at_mean=True), cost)
    study = fitting.study
    predictor = partial(predict, model, guide, draws=study.draws)
    if not method.calibrated:
        return Fitted(predictor, cost)
    num_samples = max(4, study.num_samples)  # as many as will predict: the best scale depends on it
    with Measured() as choosing, fitting.precision():
        rows = fitting.held_out.loader()
        found = calibrate_scale(model, guide, rows, num_samples=num_samples, draws=study.draws, seed=seed)
    return Fitted(predictor, cost + choosing.cost, {"sample_scale": found.scale})
