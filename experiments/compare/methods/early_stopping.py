"""`early_stopping`: the checkpoint of the point estimate that has the least NLL on held-out rows."""

from bayes_lora.experiments.compare.cost import Measured
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, always
from bayes_lora.inference import Ensemble


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    members = [Ensemble(point.network, [state]) for state in fitting.point_checkpoints(point, seed)]
    with Measured() as choosing, fitting.precision():
        predictions = [member(fitting.held_out.loader()) for member in members]
    likelihood = fitting.likelihood(point.network)
    nlls = [likelihood.metrics(found)["nll"] for found in predictions]
    best = nlls.index(min(nlls))
    return Fitted(members[best], cost + choosing.cost, {"checkpoint": best + 1})


SPECS = (
    MethodSpec(
        name="early_stopping",
        summary="nothing more; the checkpoint with the least NLL on held-out rows",
        python="Ensemble(network, [state])",
        passes="1",
        source="Prechelt 1998, Early Stopping - But When?",
        build=_build,
        needs="point",
        samples="one",
        chooses=always,
    ),
)
