"""Under which ELBOs a guide over LoRA-A is what it says."""

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from bayes_lora.effect_handlers import calling_elbo
from bayes_lora.errors import UnsupportedELBOError


def refuse_unsupported_elbo() -> None:
    """Raise if the ELBO that is calling is not one under which the objective is what it says.

    Raises:
        UnsupportedELBOError: it is another one, or vectorizes its particles.
    """
    elbo = calling_elbo()
    if elbo is not None:
        _check_elbo(elbo)


def _check_elbo(elbo: ELBO) -> None:
    name = type(elbo).__name__
    # Trace_ELBO has subclasses that enumerate, weigh or compile: those compute something else.
    if type(elbo).__module__.startswith("pyro.") and type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO):
        raise UnsupportedELBOError(
            f"{name} is not supported: it would not compute this model's objective. "
            "Use TraceMeanField_ELBO() (analytic KLs), or Trace_ELBO()."
        )
    if elbo.vectorize_particles and elbo.num_particles > 1:
        raise UnsupportedELBOError(
            f"{name}(vectorize_particles=True) is not supported: the network runs once per particle. "
            f"Use {name}(num_particles={elbo.num_particles})."
        )
