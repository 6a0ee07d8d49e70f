"""`blob`: a mean-field Gaussian on LoRA-A, trained with the network."""

from functools import partial

from bayes_lora.checks import require_positive
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option
from bayes_lora.experiments.compare.posteriors import new_start, posterior_config, predictive
from bayes_lora.experiments.compare.training_options import OF_POINT
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.inference import FitOptions, MeanFieldGuide, fit
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import Part, seeded


def _config(fitting: Fitting, method: Method) -> MonteCLoRAConfig:
    return posterior_config(fitting, method, objective="elbo")


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    """The last checkpoint of the training is all that is kept of it."""
    options = fitting.study.options(seed, **method.values_of(FitOptions))
    with seeded(options.seed_of(Part.GUIDE), CPU):
        network, likelihood = new_start(fitting, seed)
        model = BayesianLoRA(network, _config(fitting, method), likelihood).to(fitting.device)
        guide = MeanFieldGuide(model, init_scale=method.value("init_scale"))
    cost = fitting.train(partial(fit, model, guide), fitting.place(method.training.folder, seed), options)
    return predictive(fitting, method, seed, model, guide, cost)


SPECS = (
    MethodSpec(
        name="blob",
        summary="LoRA with a mean-field Gaussian on LoRA-A",
        python="guide = MeanFieldGuide(model); fit(model, guide, rows); predict(model, guide, loader)",
        passes="S",
        source="Wang et al. 2024, BLoB (arXiv 2406.11675)",
        build=_build,
        options=(
            Option("kl_temperature", 1e-2, old_name="temperature"),  # the method's published code anneals it
            # These two are the published code's.
            Option("prior_scale", 0.2),
            Option("init_scale", 2e-3, require_positive),
            *OF_POINT,
            # From there to the standard deviations that it ends with is a long way for a few hundred steps of the
            # usual size.
            Option("posterior_learning_rate", 3e-2),
        ),
        has_noise=True,
        check=_config,
    ),
)
