"""The point estimate, which a study trains once for each seed, as a method of its own."""

from bayes_lora.experiments.compare.fitting import POINT, Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec
from bayes_lora.inference import PointEstimate


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    return Fitted(PointEstimate(point.network), cost)


MAP = MethodSpec(
    name=POINT,
    summary="LoRA, once; what many others start from",
    python="PointEstimate(network)",
    passes="1",
    source="Hu et al. 2022, LoRA (arXiv 2106.09685), as PEFT has it",
    build=_build,
    needs="point",
    samples="one",
    tempered_name="temperature",
)

POINT_ESTIMATE = Method(MAP)
"""What the methods that need it start from."""
