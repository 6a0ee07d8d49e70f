"""`ivon`: LoRA trained by IVON, which learns a Gaussian over all that it trains."""

import shutil
from functools import partial

from bayes_lora.checks import require_non_negative
from bayes_lora.experiments.compare.cost import Cost
from bayes_lora.experiments.compare.fitting import CHECKPOINTS, Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option, as_text, default_of
from bayes_lora.experiments.compare.training_options import EPOCHS
from bayes_lora.extras import require_extra
from bayes_lora.inference import (
    FitOptions,
    IVONOptions,
    IVONPosterior,
    IVONPredictor,
    IVONTraining,
    fit_network,
)

_UNCLIPPED = 1e9  # IVON clips each step by itself, and learns from the gradient as it is


def _options(fitting: Fitting, method: Method) -> IVONOptions:
    """A learning rate such that its largest step is the study's learning rate, unless the method says one."""
    found = method.values_of(IVONOptions)
    clip_radius = found.get("clip_radius", IVONOptions.clip_radius)
    return IVONOptions(**{"learning_rate": fitting.study.training.learning_rate / clip_radius, **found})


def _check(fitting: Fitting, method: Method) -> None:
    require_extra("ivon", method.label, "ivon")
    _options(fitting, method)


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    folder = fitting.place(method.training.folder, seed)
    path, network = folder / "ivon.safetensors", fitting.new_point("lora", seed).network
    if path.is_file():
        posterior, cost = IVONPosterior.load(path), Cost.read(folder)
    else:
        changes = {name: value for name, value in method.values_of(FitOptions).items() if name == "epochs"}
        options = fitting.study.options(seed, max_grad_norm=_UNCLIPPED, **changes)
        training = IVONTraining(network, _options(fitting, method))
        fit = partial(fit_network, network, optimizer=training.optimizer, callbacks=[training])
        cost = fitting.train(fit, folder, options)
        posterior = training.posterior()
        posterior.save(path)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return Fitted(IVONPredictor(network, posterior, method.value("temperature"), fitting.study.draws), cost)


def _option(name: str) -> Option:
    return Option(name, shown=as_text(default_of(IVONOptions, name)))


SPECS = (
    MethodSpec(
        name="ivon",
        summary="LoRA by IVON in place of AdamW, with a Gaussian over all that is trained (extra ivon)",
        python="fit_network(network, rows, optimizer=training.optimizer, callbacks=[training]); IVONPredictor(...)",
        passes="S",
        source="Cong et al. 2024, Variational Low-Rank Adaptation Using IVON (arXiv 2411.04421), with ivon-opt",
        build=_build,
        options=(
            EPOCHS,
            Option("learning_rate", shown="--lr / clip_radius"),
            *map(_option, ("ess", "hess_init", "beta1", "beta2", "clip_radius", "weight_decay")),
            Option("temperature", default_of(IVONPredictor, "temperature"), require_non_negative, of="prediction"),
        ),
        classes_only=True,
        check=_check,
    ),
)
