"""`monteclora_calibrated`: noise around the point estimate, of which the scale alone is chosen."""

from dataclasses import replace

from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import SUFFIXES, Method, MethodSpec, always
from bayes_lora.experiments.compare.posteriors import posterior_config, predictive, trained_start
from bayes_lora.experiments.compare.training_options import OF_POSTERIOR
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    network, likelihood = trained_start(fitting, point)
    model = BayesianLoRA(network, posterior_config(fitting, method), likelihood)
    return predictive(fitting, replace(method, calibrated=True), seed, model, MonteCLoRAGuide(model), cost)


SPECS = (
    MethodSpec(
        name="monteclora_calibrated",
        summary="one number, the scale of the noise around a trained LoRA, on held-out rows",
        python=SUFFIXES["calibrated"].python,
        passes="S",
        source=SUFFIXES["calibrated"].source,
        build=_build,
        needs="point",
        options=OF_POSTERIOR,
        chooses=always,
        check=posterior_config,
    ),
)
