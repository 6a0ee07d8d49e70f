"""`lora`, `full`, `dora`, `adalora` and `adapter`: methods of fine-tuning, each with a training of its own."""

from functools import partial

from bayes_lora.checks import require_count
from bayes_lora.experiments.compare.fitting import POINT, Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option, default_of
from bayes_lora.experiments.compare.training_options import LEARNING_RATE, OF_POINT
from bayes_lora.inference import FitOptions, PointEstimate
from bayes_lora.inference.finetuning.point_networks import Way, make_network

BOTTLENECK_SIZE = Option("bottleneck_size", default_of(make_network, "bottleneck_size"), require_count)


def _build(way: Way, fitting: Fitting, method: Method, seed: int) -> Fitted:
    folder = fitting.place(method.training.folder, seed)
    made_with = {BOTTLENECK_SIZE.name: method.value(BOTTLENECK_SIZE.name)} if way == "adapter" else {}
    point, cost = fitting.train_point(way, folder, seed, made_with=made_with, **method.values_of(FitOptions))
    return Fitted(PointEstimate(point.network), cost)


def _spec(
    way: Way, summary: str, source: str, *own: Option, learning_rate: Option = LEARNING_RATE, stands_for: str = ""
) -> MethodSpec:
    return MethodSpec(
        name=way,
        summary=summary,
        python=f'fit_point(make_network("{way}", base), rows)',
        passes="1",
        source=source,
        build=partial(_build, way),
        options=(*(learning_rate if option is LEARNING_RATE else option for option in OF_POINT), *own),
        samples="one",
        stands_for=stands_for,
        not_of_options="its bottlenecks have places in encoders only, and a decoder scores options"
        if way == "adapter"
        else "",
    )


def _rate(value: float) -> Option:
    """Training everything, or LayerNorms, at LoRA's learning rate destroys the base model."""
    return Option(LEARNING_RATE.name, value)


SPECS = (
    _spec(
        "lora",
        "LoRA with other options than those that all methods share; without options it is map",
        "Hu et al. 2022, LoRA (arXiv 2106.09685), as PEFT has it",
        stands_for=POINT,
    ),
    _spec("full", "all parameters", "transformers", learning_rate=_rate(5e-5)),
    _spec("dora", "LoRA, and the norms of rows", "Liu et al. 2024, DoRA (arXiv 2402.09353), as PEFT has it"),
    _spec(
        "adalora",
        "LoRA whose ranks are divided among the layers while it trains",
        "Zhang et al. 2023, AdaLoRA (arXiv 2303.10512), as PEFT has it",
    ),
    _spec(
        "adapter",
        "a bottleneck after each sub-layer, and LayerNorms",
        "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP (arXiv 1902.00751)",
        BOTTLENECK_SIZE,
        learning_rate=_rate(5e-4),
    ),
)
