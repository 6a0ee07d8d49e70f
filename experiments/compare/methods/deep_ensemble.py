"""`deep_ensemble`: point estimates that differ in their seed."""

from bayes_lora.checks import require_count
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.cost import Cost
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option
from bayes_lora.inference import Ensemble, trainable_state

_APART = 1000  # between the seeds of members; the first is the point estimate itself


def _member_seeds(method: Method, seed: int) -> list[int]:
    return [seed + _APART * member for member in range(method.value("members"))]


def _check(fitting: Fitting, method: Method) -> None:
    seeds = fitting.study.seeds
    members = [member for seed in seeds for member in _member_seeds(method, seed)]
    if len(set(members)) < len(members):
        raise ConfigurationError(
            f"the ensembles of --seeds {','.join(map(str, seeds))} would share members, which are trained {_APART} "
            "seeds apart. Choose seeds that are closer together, such as 0,1,2."
        )


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    trained = [fitting.point(member) for member in _member_seeds(method, seed)]
    states = [trainable_state(point.network) for point, _ in trained]
    return Fitted(Ensemble(trained[0][0].network, states), sum((cost for _, cost in trained), Cost()))


SPECS = (
    MethodSpec(
        name="deep_ensemble",
        summary="M networks, each with a seed of its own",
        python="Ensemble(network, states)",
        passes="M",
        source="Lakshminarayanan et al. 2017, Simple and Scalable Predictive Uncertainty Estimation using Deep "
        "Ensembles, section 2.4",
        build=_build,
        needs="point",
        options=(Option("members", 3, require_count, of="prediction"),),
        samples="members",
        check=_check,
    ),
)
