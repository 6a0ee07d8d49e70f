"""Under which ELBOs a guide over LoRA-A is what it says."""

import sys

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from bayes_lora.errors import UnsupportedELBOError


def refuse_unsupported_elbo() -> None:
    """Raise if the ELBO that is calling is not one under which the objective is what it says.

    Pyro tells a guide nothing about its caller, so this looks up the call stack for the ELBO's entry point.

    Raises:
        UnsupportedELBOError: it is another one, or vectorizes its particles.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("differentiable_loss", "loss_and_grads", "loss", "loss_and_surrogate_loss"):
            elbo = frame.f_locals.get("self")
            if isinstance(elbo, ELBO):
                _check_elbo(elbo)
                return
        frame = frame.f_back  # type: ignore[assignment]


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
