"""What the handlers around a model listen to."""

from pyro import poutine
from pyro.poutine.replay_messenger import ReplayMessenger


def densities_only() -> bool:
    """Whether the handlers want nothing but latent and observed sites: replay, and those that say `densities_only`.

    Then neither param messages nor deterministic sites need to be sent; each costs a part of a small step.
    """
    handlers = poutine.runtime._PYRO_STACK
    return all(isinstance(h, ReplayMessenger) or getattr(h, "densities_only", False) for h in handlers)
