"""Members of an ensemble: trainings that differ in their seed."""

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.fitting import Fitting
from bayes_lora.experiments.compare.method_spec import Method

_APART = 1000  # between the seeds of members; the first has the seed of the study


def member_seeds(method: Method, seed: int) -> list[int]:
    """The seeds of the members of a method with the option `members`."""
    return [seed + _APART * member for member in range(method.value("members"))]


def require_own_members(fitting: Fitting, method: Method) -> None:
    """Raise where ensembles of two seeds of the study would have a member in common."""
    seeds = fitting.study.seeds
    members = [member for seed in seeds for member in member_seeds(method, seed)]
    if len(set(members)) < len(members):
        raise ConfigurationError(
            f"the ensembles of --seeds {','.join(map(str, seeds))} would share members, which are trained {_APART} "
            "seeds apart. Choose seeds that are closer together, such as 0,1,2."
        )
