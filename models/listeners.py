"""Whether anybody listens to param messages."""

from pyro import poutine
from pyro.poutine.replay_messenger import ReplayMessenger


def params_are_wanted() -> bool:
    """Whether a handler may look at a param message sent now: any but replay, and those that say `ignores_params`."""
    handlers = poutine.runtime._PYRO_STACK
    return not all(isinstance(h, ReplayMessenger) or getattr(h, "ignores_params", False) for h in handlers)
