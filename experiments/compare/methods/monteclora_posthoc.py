"""`monteclora_posthoc`: the posterior alone, on the point estimate."""

from functools import partial

from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec
from bayes_lora.experiments.compare.posteriors import fit_posterior, posterior_config, predictive, trained_start
from bayes_lora.experiments.compare.training_options import (
    OF_POSTERIOR,
    POSTERIOR_LEARNING_RATE,
    QUARTER_OF_EPOCHS,
    SCALE_SCHEDULE,
    quarter_of_epochs,
)


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, before = fitting.point(seed)
    changes = {"phases": "posterior", "epochs": quarter_of_epochs(fitting.study)}
    config = posterior_config(fitting, method)
    model, guide, cost = fit_posterior(fitting, method, seed, partial(trained_start, fitting, point), config, **changes)
    return predictive(fitting, method, seed, model, guide, before + cost)


SPECS = (
    MethodSpec(
        name="monteclora_posthoc",
        summary="the posterior alone, on a trained LoRA",
        python='fit(model, guide, rows, FitOptions(phases="posterior"))',
        passes="S",
        source="arXiv 2411.04358, its post hoc variant",
        build=_build,
        needs="point",
        options=(
            *OF_POSTERIOR,
            QUARTER_OF_EPOCHS,
            POSTERIOR_LEARNING_RATE,
            SCALE_SCHEDULE,
        ),
        has_noise=True,
        check=posterior_config,
    ),
)
