"""`deep_ensemble`: point estimates that differ in their seed."""

from bayes_lora.checks import require_count
from bayes_lora.experiments.compare.cost import Cost
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.members import member_seeds, require_own_members
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option
from bayes_lora.inference import Ensemble, trainable_state


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    trained = [fitting.point(member) for member in member_seeds(method, seed)]
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
        check=require_own_members,
    ),
)
