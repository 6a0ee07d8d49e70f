"""`untrained`: the base model as it is, before anything is learned."""

from bayes_lora.experiments.compare.cost import Measured
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec
from bayes_lora.inference import PointEstimate


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    with Measured() as making:
        point = fitting.new_point("lora", seed)
    return Fitted(PointEstimate(point.network), making.cost)


SPECS = (
    MethodSpec(
        name="untrained",
        summary="nothing: the base model as it is, where that has a head for the task; a new head knows nothing",
        python="PointEstimate(network)",
        passes="1",
        source="the base model",
        build=_build,
        needs="nothing",
        samples="one",
    ),
)
