"""`checkpoint_ensemble`: the last checkpoints of the point estimate."""

from bayes_lora.checks import require_count
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option
from bayes_lora.inference import Ensemble


def _check(fitting: Fitting, method: Method) -> None:
    _require(method, fitting.num_checkpoints)


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    states = fitting.point_checkpoints(point, seed)
    _require(method, len(states))  # some may have been deleted
    return Fitted(Ensemble(point.network, states[-method.value("members") :]), cost)


def _require(method: Method, kept: int) -> None:
    if method.value("members") > kept:
        raise ConfigurationError(
            f"{method.label} needs {method.value('members')} checkpoints, and the point estimate keeps {kept}. Ask "
            "for fewer members."
        )


SPECS = (
    MethodSpec(
        name="checkpoint_ensemble",
        summary="nothing more; the last checkpoints, of ten that are kept",
        python="Ensemble(network, checkpoint_states(folder, network))",
        passes="M",
        source="Chen et al. 2017, Checkpoint Ensembles (arXiv 1710.03282)",
        build=_build,
        needs="point",
        options=(Option("members", 5, require_count, of="prediction"),),
        samples="members",
        check=_check,
    ),
)
