"""`monteclora` and `monteclora_sparse`: LoRA and its posterior, trained together."""

from collections.abc import Callable
from functools import partial
from typing import Any

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec
from bayes_lora.experiments.compare.posteriors import fit_posterior, new_start, posterior_config, predictive
from bayes_lora.experiments.compare.training_options import (
    OF_POINT,
    OF_POSTERIOR,
    POSTERIOR_LEARNING_RATE,
    SCALE_SCHEDULE,
)


def _build(
    config_of: Callable[[Fitting, Method], MonteCLoRAConfig], fitting: Fitting, method: Method, seed: int
) -> Fitted:
    start = partial(new_start, fitting, seed)
    model, guide, cost = fit_posterior(fitting, method, seed, start, config_of(fitting, method))
    return predictive(fitting, method, seed, model, guide, cost)


def _spec(name: str, summary: str, python: str, **fixed: Any) -> MethodSpec:
    config_of = partial(posterior_config, **fixed)
    return MethodSpec(
        name=name,
        summary=summary,
        python=python,
        passes="S",
        source="arXiv 2411.04358, Algorithm 1",
        build=partial(_build, config_of),
        options=(*OF_POSTERIOR, *OF_POINT, POSTERIOR_LEARNING_RATE, SCALE_SCHEDULE),
        has_noise=True,
        check=config_of,
    )


SPECS = (
    _spec(
        "monteclora",
        "LoRA with its posterior",
        "guide = MonteCLoRAGuide(model); fit(model, guide, rows); predict(model, guide, loader)",
    ),
    _spec(
        "monteclora_sparse",
        "as monteclora, one component of the mixture at a time",
        'BayesianLoRA(network, MonteCLoRAConfig(mixture="sparse"))',
        mixture="sparse",
    ),
)
