"""`base_rate`: the share of each class, whatever the row says."""

import torch

from bayes_lora.experiments.compare.cost import Measured
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec
from bayes_lora.inference import BaseRate


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    with Measured() as counting:
        predictor = BaseRate(torch.tensor(fitting.fit.data["labels"]), len(fitting.task.label_names))
    return Fitted(predictor, counting.cost)


SPECS = (
    MethodSpec(
        name="base_rate",
        summary="nothing: the share of each class, which whoever reads rows must beat",
        python="BaseRate(labels, num_classes)",
        passes="0",
        source="the classes of the training rows",
        build=_build,
        needs="nothing",
        samples="one",
        classes_only=True,
        not_of_options="their places say nothing of them, so that shares of places are no knowledge",
    ),
)
