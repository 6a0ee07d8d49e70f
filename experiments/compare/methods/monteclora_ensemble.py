"""`monteclora_ensemble`: posteriors that differ in their seed, as one mixture."""

from functools import partial

from torch import nn

from bayes_lora.checks import require_count
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.cost import Cost
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.members import member_seeds, require_own_members
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option
from bayes_lora.experiments.compare.posteriors import fit_posterior, new_start, posterior_config
from bayes_lora.experiments.compare.training_options import (
    OF_POINT,
    OF_POSTERIOR,
    POSTERIOR_LEARNING_RATE,
    SCALE_SCHEDULE,
)
from bayes_lora.inference import Mixture, predict


def _check(fitting: Fitting, method: Method) -> None:
    posterior_config(fitting, method)
    require_own_members(fitting, method)
    if fitting.likelihood(nn.Module()).reduces:
        raise ConfigurationError(
            f"{method.label} mixes draws, which predictions of task type {fitting.task.task_type} do not keep apart. "
            "Leave it out of --methods."
        )


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    config, members, cost = posterior_config(fitting, method), [], Cost()
    for member in member_seeds(method, seed):
        start = partial(new_start, fitting, member)
        model, guide, own = fit_posterior(fitting, method, member, start, config)
        members.append(partial(predict, model, guide, draws=fitting.study.draws))
        cost += own
    return Fitted(Mixture(members, fitting.task.family.likelihood(model.network, fitting.task.label_names)), cost)


SPECS = (
    MethodSpec(
        name="monteclora_ensemble",
        summary="M times LoRA with its posterior, each with a seed of its own, which share the draws",
        python="Mixture([partial(predict, model, guide), ...])",
        passes="S",
        source="Lakshminarayanan et al. 2017, of posteriors as in Wilson and Izmailov 2020 (arXiv 2002.08791)",
        build=_build,
        options=(
            Option("members", 3, require_count, of="prediction"),
            *OF_POSTERIOR,
            *OF_POINT,
            POSTERIOR_LEARNING_RATE,
            SCALE_SCHEDULE,
        ),
        check=_check,
    ),
)
