"""The ELBO of every likelihood, and its gradient, against closed forms of a network that is linear in LoRA-A."""

import numpy as np
import pytest
import torch
from pyro import poutine

from bayes_lora.inference import ItemizedELBO, MeanFieldGuide
from tests.linear import LAWS, PRIOR_SCALE, LinearCase, linear_case

EACH = pytest.mark.parametrize("name", LAWS)


def closed_form(case: LinearCase, mean: float, deviation: float, z: float) -> tuple[float, dict[str, float]]:
    """The loss at ``a = mean + deviation z``, and its derivatives.

    -1/n sum_i ln p(y_i | f_i(a)) + 1/n KL(N(mean, deviation^2) || N(0, p^2))
    """
    law, labels, n = case.law, case.labels, case.model.config.num_train_examples
    assert n is not None
    f = case.logits(mean + deviation * z, case.problem.inputs)
    kl = (deviation**2 + mean**2) / (2 * PRIOR_SCALE**2) - 0.5 - np.log(deviation / PRIOR_SCALE)
    loss = (kl - law.log_density(f, labels).sum()) / n
    slope = (law.score(f, labels) * case.slope * case.problem.inputs.numpy()).sum()
    gradients = {
        "mean": (mean / PRIOR_SCALE**2 - slope) / n,
        "log deviation": (deviation**2 / PRIOR_SCALE**2 - 1 - slope * deviation * z) / n,
    }
    return loss, gradients | {name: -value / n for name, value in law.of_parameters(f, labels).items()}


@EACH
def test_value_and_gradient(name: str) -> None:
    case = linear_case(name)
    model, guide = case.model, MeanFieldGuide(case.model)
    weight = model.sites.adapters[0].linear.weight
    with torch.no_grad():
        weight.fill_(0.8)
    elbo = ItemizedELBO()
    torch.manual_seed(1)
    trace = poutine.trace(guide).get_trace(**case.batch)
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(model, guide, **case.batch)
    group = model.sites.groups[0]
    drawn = trace.nodes[model.sites.column_site(group)]["value"].item()
    deviation = guide.deviation(group).item()
    expected, gradients = closed_form(case, 0.8, deviation, (drawn - 0.8) / deviation)
    loss.backward()
    found = {"mean": weight.grad, "log deviation": next(guide.parameters()).grad}
    found |= {name: parameter.grad for name, parameter in model.likelihood.named_parameters()}
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    assert found.keys() == gradients.keys()
    for key, value in gradients.items():
        np.testing.assert_allclose(np.ravel(found[key]), np.ravel(value), rtol=1e-9, atol=1e-11, err_msg=key)


@EACH
def test_density_along_lora_a(name: str) -> None:
    """The model's own joint density is that of the quadrature: other rows, or another prior, would be seen."""
    case = linear_case(name)
    model = case.model
    site = model.sites.column_site(model.sites.groups[0])
    values, found = np.linspace(-2, 3, 7), []
    n = model.config.num_train_examples
    assert n is not None
    for a in values:
        conditioned = poutine.condition(model, {site: torch.full((1, 1, 1), a, dtype=torch.double)})
        trace = poutine.trace(conditioned).get_trace(**case.batch)
        found.append(n * trace.log_prob_sum(lambda site_name, _: site_name in ("y", site)).item())
    np.testing.assert_allclose(found, case.log_joint(values), rtol=1e-9)
