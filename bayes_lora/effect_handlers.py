"""Effect handlers: plates and weight of one sample site, and what the handlers around a model ask for."""

import sys
from typing import Any

from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceMessenger

# Where a loss is computed.
_OF_ELBO = {"differentiable_loss", "loss_and_grads", "loss", "loss_and_surrogate_loss"}


class SiteHandler(Messenger):  # type: ignore[misc]
    """What a stack of `pyro.plate` and `poutine.scale` says of the sites inside, said at once.

    The plates are from left to right and fill the last batch dimensions. A site inside brings its full batch shape,
    which nobody broadcasts here; with `pyro.plate` each plate would do so, and each handler costs more than a small
    distribution takes to sample.

    Args:
        plates: sizes by name, from left to right.
        weight: of the sites' log densities and KLs; at 0 they are masked out, since Pyro scales by positive numbers.
    """

    def __init__(self, plates: dict[str, int], weight: float) -> None:
        super().__init__()
        dims = range(-len(plates), 0)
        frames = [
            CondIndepStackFrame(name=name, dim=dim, size=size, counter=0, full_size=size)
            for dim, (name, size) in zip(dims, plates.items(), strict=True)
        ]
        self._frames = tuple(frames)
        self.weight = weight

    def _process_message(self, msg: Any) -> None:
        msg["cond_indep_stack"] = self._frames + msg["cond_indep_stack"]
        if self.weight > 0:
            msg["scale"] *= self.weight
        else:
            msg["mask"] = False


class ObservedSites(Messenger):  # type: ignore[misc]
    """Sees which of the sites inside are observed, by the model itself or by a handler around it.

    Attributes:
        names: of those that are, but for deterministic ones.
    """

    densities_only = True

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            self.names.append(msg["name"])


def densities_only() -> bool:
    """Whether the handlers want nothing but latent and observed sites: replay, and those that say `densities_only`.

    Then neither param messages nor deterministic sites need to be sent; each costs a part of a small step.
    """
    handlers = poutine.runtime._PYRO_STACK
    return all(isinstance(h, ReplayMessenger) or getattr(h, "densities_only", False) for h in handlers)


def wants_parameters() -> bool:
    """Whether a handler may look at param messages: not the traces that an ELBO makes, which read sites alone.

    `SVI.step` has one around its ELBO that keeps nothing else. Of other handlers nobody knows.
    """
    handlers = poutine.runtime._PYRO_STACK
    plain = all(
        isinstance(h, ReplayMessenger) or (isinstance(h, TraceMessenger) and not h.param_only) for h in handlers
    )
    return not (plain and calling_elbo() is not None)


def calling_elbo() -> ELBO | None:
    """The ELBO that this is called from, if any; Pyro tells a model nothing about its caller, so the stack is asked."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in _OF_ELBO:
            elbo = frame.f_locals.get("self")
            if isinstance(elbo, ELBO):
                return elbo
        frame = frame.f_back  # type: ignore[assignment]
    return None
