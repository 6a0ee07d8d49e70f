"""`swag`: a Gaussian around the iterates of a training that goes on from the point estimate, at a rate that stays."""

import shutil
from functools import partial
from typing import Any

from bayes_lora.checks import require_positive
from bayes_lora.experiments.compare.cost import Cost
from bayes_lora.experiments.compare.fitting import CHECKPOINTS, Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option, default_of
from bayes_lora.experiments.compare.training_options import QUARTER_OF_EPOCHS, quarter_of_epochs
from bayes_lora.inference import SWAG, FitOptions, SWAGCollector, SWAGPredictor, fit_network

_ITERATES = 20


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    folder = fitting.place(method.training.folder, seed)
    path = folder / "swag.safetensors"
    if path.is_file():
        swag, own = SWAG.load(path), Cost.read(folder)
    else:
        study = fitting.study
        changes: dict[str, Any] = {
            "epochs": quarter_of_epochs(study),
            "learning_rate": study.training.learning_rate / 2,
            **method.values_of(FitOptions),
        }
        options = study.options(seed, decay="constant", warmup_ratio=0.0, **changes)
        every = max(1, fitting.num_steps(options) // _ITERATES)
        collector = SWAGCollector(point.network, every=every, num_deviations=_ITERATES)
        own = fitting.train(partial(fit_network, point.network, callbacks=[collector]), folder, options)
        swag = collector.swag()
        swag.save(path)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    predictor = SWAGPredictor(point.network, swag, method.value("scale"), fitting.study.draws)
    return Fitted(predictor, cost + own)


SPECS = (
    MethodSpec(
        name="swag",
        summary=f"goes on from LoRA at a constant learning rate, and takes {_ITERATES} iterates",
        python="SWAGPredictor(network, collector.swag())",
        passes="S",
        source="Maddox et al. 2019, A Simple Baseline for Bayesian Uncertainty in Deep Learning",
        build=_build,
        needs="point",
        options=(
            QUARTER_OF_EPOCHS,
            Option("learning_rate", shown="half of --lr"),
            Option("scale", default_of(SWAGPredictor, "scale"), require_positive, of="prediction"),
        ),
    ),
)
