"""Effective number of components: known expectations, the collapsed mixture, one component."""

import math
from typing import Any

import pytest
import torch
from scipy import integrate

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.inference.diagnostics import mixture
from bayes_lora.models import BayesianLoRA
from tests.networks import build_bank, build_pair


def pair(alpha: list[float], **config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """Two adapters, of which the second has this alpha and the first an even one."""
    model, guide = build_pair(build_bank([6, 9], 2), num_components=len(alpha), **config)
    with torch.no_grad():
        guide.concentration = torch.tensor([[50.0] * len(alpha), alpha], dtype=torch.double)
    return model, guide


def test_against_the_integral() -> None:
    """For two components pi ~ Beta(2, 3): E[1 / (pi^2 + (1 - pi)^2)] by quadrature."""
    model, guide = pair([2.0, 3.0])
    moments = [
        integrate.quad(lambda x, k=k: 12 * x * (1 - x) ** 2 / (x * x + (1 - x) ** 2) ** k, 0, 1)[0] for k in (1, 2)
    ]
    error = math.sqrt((moments[1] - moments[0] ** 2) / 400)
    found = mixture(model, guide, num_draws=400)
    assert abs(found.effective[1] - moments[0]) < 4 * error
    assert 1.95 < found.effective[0] < 2
    assert not found.flagged
    assert found.message.startswith(f"Of 2 components {found.effective[1]:.2f} to {found.effective[0]:.2f} are in use")


@pytest.mark.parametrize("config", [{}, {"num_outer_samples": 3}, {"sampler": "explicit"}])
def test_a_collapsed_mixture_is_flagged(config: dict[str, Any]) -> None:
    model, guide = pair([200.0, 0.1, 0.1, 0.1], **config)
    found = mixture(model, guide)
    assert found.effective[1] < 1.1
    assert found.effective[0] > 3.5
    assert found.collapsed == (model.sites.names[1],)
    assert found.flagged
    assert "has collapsed (below 1.1) for layers.1: fit with num_components=1" in found.message
    assert not mixture(model, guide, least=1.0).flagged


def test_one_component_cannot_collapse() -> None:
    found = mixture(*pair([1.0]))
    assert found.effective == pytest.approx((1.0, 1.0))
    assert not found.flagged
    assert found.message == "There is one component, so there is no mixture to collapse."


def test_errors() -> None:
    model, guide = pair([1.0, 1.0])
    with pytest.raises(ConfigurationError, match="num_draws=0 must be an integer >= 1"):
        mixture(model, guide, num_draws=0)
    with pytest.raises(ConfigurationError, match="least=0 must be positive"):
        mixture(model, guide, least=0)
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        mixture(model, pair([1.0, 1.0])[1])
