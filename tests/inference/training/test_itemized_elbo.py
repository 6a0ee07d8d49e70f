"""The itemized loss, where Pyro's own refuses to compute one."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from bayes_lora.errors import UnsupportedELBOError
from bayes_lora.inference import ItemizedELBO


class WithoutPaths(dist.Normal):  # type: ignore[misc]
    """Draws that do not follow the parameters, as those of a discrete distribution."""

    has_rsample = False


def model() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(3.0))


def guide_of(kind: Any, loc: Tensor) -> Any:
    return lambda: pyro.sample("z", kind(loc, 1.0))


def test_draws_that_do_not_follow_their_parameters_are_refused_as_by_pyro() -> None:
    """The gradient of the first term would be 0 instead of -3, without a word."""
    loc = torch.zeros((), requires_grad=True)
    with pytest.raises(NotImplementedError, match="fully reparameterized"):
        TraceMeanField_ELBO().differentiable_loss(model, guide_of(WithoutPaths, loc))
    with pytest.raises(UnsupportedELBOError, match=r"the guide's site 'z' draws from WithoutPaths.*or use Trace_ELBO"):
        ItemizedELBO().differentiable_loss(model, guide_of(WithoutPaths, loc))
    # Where they do, the loss has the gradient of the closed form.
    losses = []
    for elbo in (TraceMeanField_ELBO(num_particles=4000), ItemizedELBO(num_particles=4000)):
        torch.manual_seed(0)
        loss = elbo.differentiable_loss(model, guide_of(dist.Normal, loc))
        losses.append((loss.item(), *torch.autograd.grad(loss, loc)))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert float(losses[1][1]) == pytest.approx(-3, abs=5 / 4000**0.5)


def test_sites_of_the_guide_alone_must_follow_theirs_too() -> None:
    loc = torch.zeros((), requires_grad=True)

    def guide() -> None:
        auxiliary = pyro.sample("auxiliary", WithoutPaths(loc, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(auxiliary, 1.0))

    with pytest.raises(NotImplementedError):
        TraceMeanField_ELBO().differentiable_loss(model, guide)
    with pytest.raises(UnsupportedELBOError, match="'auxiliary' draws from WithoutPaths"):
        ItemizedELBO().differentiable_loss(model, guide)
