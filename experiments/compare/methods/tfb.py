"""`tfb`: the largest noise around the point estimate that hardly changes what it says of training rows."""

from bayes_lora.checks import require_count, require_positive
from bayes_lora.experiments.compare.cost import Measured
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option, default_of
from bayes_lora.inference import TFBPredictor, tune_tfb


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    study = fitting.study
    anchors = fitting.fit.first(method.value("anchor_rows")).loader()
    with Measured() as choosing, fitting.precision():
        found = tune_tfb(
            point.network,
            anchors,
            tolerance=method.value("tolerance"),
            num_samples=study.num_samples,
            draws=study.draws,
            seed=seed,
        )
    return Fitted(TFBPredictor(point.network, found.sigma, study.draws), cost + choosing.cost, {"sigma": found.sigma})


SPECS = (
    MethodSpec(
        name="tfb",
        summary="nothing more; the scale of noise isotropic in B A, by training rows without their labels",
        python="TFBPredictor(network, tune_tfb(network, loader).sigma)",
        passes="S",
        source="Shi et al. 2025, Training-Free Bayesianization for Low-Rank Adapters (arXiv 2412.05723)",
        build=_build,
        needs="point",
        options=(
            Option("tolerance", default_of(tune_tfb, "tolerance"), require_positive),
            Option("anchor_rows", 200, require_count),
        ),
        classes_only=True,
    ),
)
