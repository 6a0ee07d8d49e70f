"""`scalabl`: LoRA with a posterior over the scales of LoRA-A's rows, trained together."""

import shutil
from functools import partial
from typing import Any

import torch

from bayes_lora.checks import require_non_negative, require_positive
from bayes_lora.experiments.compare.cost import Cost
from bayes_lora.experiments.compare.fitting import CHECKPOINTS, Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option, default_of
from bayes_lora.experiments.compare.training_options import EPOCHS, LEARNING_RATE
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.inference import FitOptions, ScalaBL, ScalaBLPredictor, fit_network
from bayes_lora.randomness import Part, seeded


def _optimizer(module: ScalaBL, options: FitOptions, posterior_learning_rate: float) -> torch.optim.Optimizer:
    """As `fit` has it: the deviations have a learning rate of their own, since Adam moves logarithms in small steps."""
    named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    deviations = [value for name, value in named if name.startswith("log_deviations.")]
    others = [value for name, value in named if not name.startswith("log_deviations.")]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": deviations, "lr": posterior_learning_rate}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=0.0)


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    folder = fitting.place(method.training.folder, seed)
    path, changes = folder / "scalabl.safetensors", method.values_of(FitOptions)
    options = fitting.study.options(seed, **changes)
    with seeded(options.seed_of(Part.GUIDE), CPU):
        module = ScalaBL(
            fitting.new_point("lora", seed).network,
            len(fitting.fit.data),
            **{name: method.value(name) for name in ("init_scale", "prior_scale", "kl_temperature")},
        ).to(fitting.device)
    if path.is_file():
        module.load(path)
        cost = Cost.read(folder)
    else:
        fit = partial(fit_network, module, optimizer=_optimizer(module, options, options.posterior_learning_rate))
        cost = fitting.train(fit, folder, options)
        module.save(path)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return Fitted(ScalaBLPredictor(module, method.value("deviation"), fitting.study.draws), cost)


SPECS = (
    MethodSpec(
        name="scalabl",
        summary="LoRA with a Gaussian over the scales of LoRA-A's rows",
        python="module = ScalaBL(network, len(rows)); fit_network(module, rows); ScalaBLPredictor(module)",
        passes="S",
        source="Samplawski et al. 2025, ScalaBL (arXiv 2506.21408)",
        build=_build,
        options=(
            Option("kl_temperature", 1e-2, require_non_negative),  # the published code anneals it, as blob's does
            Option("prior_scale", default_of(ScalaBL, "prior_scale"), require_positive),
            Option("init_scale", default_of(ScalaBL, "init_scale"), require_positive),
            EPOCHS,
            LEARNING_RATE,
            Option("posterior_learning_rate", 3e-2),  # as blob's, of which the way is as long
            Option("deviation", default_of(ScalaBLPredictor, "deviation"), require_non_negative, of="prediction"),
        ),
        classes_only=True,
    ),
)
