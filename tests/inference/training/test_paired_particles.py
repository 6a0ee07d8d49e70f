"""A loss over antithetic pairs: the same mean, a gradient that varies less."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import ItemizedELBO, MeanFieldGuide, autoguide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, build_pair
from tests.statistics import assert_same_mean

Pair = tuple[BayesianLoRA, Any]


def build(**config: Any) -> Pair:
    return build_pair(build_network(), sample_scale=0.1, **config)


def mean_field() -> Pair:
    model, _ = build(objective="elbo", num_train_examples=20)
    return model, MeanFieldGuide(model)


PAIRS: dict[str, Callable[[], Pair]] = {
    "paper": build,
    "explicit": lambda: build(sampler="explicit"),
    "elbo": lambda: build(objective="elbo", num_train_examples=20),
    "mean field": mean_field,
}


def parameters(pair: Pair) -> list[Tensor]:
    model, guide = pair
    return [parameter for module in (model, guide) for parameter in module.parameters() if parameter.requires_grad]


def gradient(pair: Pair, elbo: Any, batch: Batch, seed: int) -> Tensor:
    torch.manual_seed(seed)
    of = parameters(pair)
    loss = elbo.differentiable_loss(*pair, **batch)
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, of, materialize_grads=True)])


def mean_nll_of_a_pair(pair: Pair, batch: Batch, seed: int) -> Tensor:
    """The obvious way: the model replayed on the guide's trace, and again with the columns mirrored."""
    model, guide = pair
    torch.manual_seed(seed)
    with poutine.trace() as recorder:
        guide()
    losses = []
    for sign in (1, -1):
        trace = recorder.trace.copy()
        for group in model.sites.groups:
            name = model.sites.column_site(group)
            centre = 0.0 if model.config.objective == "paper" else model.sites.means(group)
            node = trace.nodes[name]
            trace.nodes[name] = {**node, "value": centre + sign * (node["value"] - centre)}
        logits = poutine.replay(model, trace=trace)(**batch)
        losses.append(torch.nn.functional.cross_entropy(logits, batch["labels"]))
    return (losses[0] + losses[1]) / 2


@pytest.mark.parametrize("build_pair_of", PAIRS.values(), ids=PAIRS.keys())
def test_the_loss_is_the_mean_over_both_sides(build_pair_of: Callable[[], Pair], batch: Batch) -> None:
    pair = build_pair_of()
    of = parameters(pair)
    torch.manual_seed(4)
    elbo = ItemizedELBO(num_particles=2)
    elbo.differentiable_loss(*pair, **batch)
    expected = mean_nll_of_a_pair(pair, batch, 4)
    torch.testing.assert_close(elbo.terms["nll"], expected.detach(), rtol=1e-10, atol=1e-12)
    torch.manual_seed(4)
    single = ItemizedELBO()
    loss = single.differentiable_loss(*pair, **batch)
    for name in single.terms.keys() - {"nll"}:
        torch.testing.assert_close(elbo.terms[name], single.terms[name])
    # Gradients: those of the other terms are those of the single draw's.
    with_nll = torch.autograd.grad(loss, of, materialize_grads=True)
    torch.manual_seed(4)
    of_nll = torch.autograd.grad(_nll(pair, batch), of, materialize_grads=True)
    of_pair = torch.autograd.grad(expected, of, materialize_grads=True)
    wanted = torch.cat([(a - b + c).flatten() for a, b, c in zip(with_nll, of_nll, of_pair, strict=True)])
    torch.testing.assert_close(gradient(pair, ItemizedELBO(num_particles=2), batch, 4), wanted, rtol=1e-8, atol=1e-12)


def _nll(pair: Pair, batch: Batch) -> Tensor:
    model, guide = pair
    with poutine.trace() as recorder:
        guide()
    return torch.nn.functional.cross_entropy(poutine.replay(model, trace=recorder.trace)(**batch), batch["labels"])


@pytest.mark.parametrize("objective", [{}, {"objective": "elbo", "num_train_examples": 20}], ids=["paper", "elbo"])
def test_the_mean_gradient_is_that_of_independent_draws_and_it_varies_less(
    objective: dict[str, Any], batch: Batch
) -> None:
    pair = build(normal_kl="expected", **objective)
    paired, apart = (
        torch.stack([gradient(pair, elbo, batch, seed + offset) for seed in range(200)])
        for elbo, offset in ((ItemizedELBO(2), 0), (ItemizedELBO(2, "independent"), 1000))
    )
    total = torch.randn(paired.shape[1], 5, generator=torch.Generator().manual_seed(0), dtype=paired.dtype)
    assert_same_mean(paired @ total, apart @ total)
    # Of LoRA-A; alpha and v have terms of pi and Sigma, which a pair draws once.
    sizes = [parameter.numel() for parameter in parameters(pair)]
    names = [name for module in pair for name, p in module.named_parameters() if p.requires_grad]
    of_means = torch.cat([torch.full((size,), "lora_A" in name) for name, size in zip(names, sizes, strict=True)])
    assert paired[:, of_means].var(0).sum() < apart[:, of_means].var(0).sum() / 5


def test_more_pairs_and_an_odd_draw(batch: Batch) -> None:
    """Particles 0 and 1 mirror each other, 2 and 3 do, and 4 stands alone."""
    pair = PAIRS["elbo"]()
    seen: list[Tensor] = []
    elbo = ItemizedELBO(num_particles=5)
    site = pair[0].sites.column_site(pair[0].sites.groups[0])
    for _, guide_trace in elbo._get_traces(*pair, (), batch):
        seen.append(guide_trace.nodes[site]["value"])
    mean = pair[0].sites.means(pair[0].sites.groups[0])
    torch.testing.assert_close(seen[0] + seen[1], 2 * mean)
    torch.testing.assert_close(seen[2] + seen[3], 2 * mean)
    assert not torch.allclose(seen[0], seen[2])
    assert not torch.allclose(seen[4] + seen[3], 2 * mean)


def test_what_cannot_be_mirrored_has_independent_particles(batch: Batch) -> None:
    model, guide = build(objective="elbo", num_train_examples=20)
    auto = autoguide(model, AutoNormal)
    for other in (auto, lambda *args, **kwargs: guide(*args, **kwargs)):
        torch.manual_seed(0)
        one = ItemizedELBO(2).differentiable_loss(model, other, **batch)
        torch.manual_seed(0)
        assert torch.equal(one, ItemizedELBO(2, "independent").differentiable_loss(model, other, **batch))
        with pytest.raises(ConfigurationError, match="draws='independent'"):
            ItemizedELBO(2, "antithetic").differentiable_loss(model, other, **batch)


def test_pyros_own_loss_is_the_same_in_the_mean(batch: Batch) -> None:
    pair = PAIRS["paper"]()
    with torch.no_grad():
        losses = []
        for kind, offset in ((ItemizedELBO, 0), (TraceMeanField_ELBO, 1000)):
            values = []
            for seed in range(200):
                torch.manual_seed(seed + offset)
                values.append(torch.as_tensor(kind(num_particles=2).loss(*pair, **batch)))
            losses.append(torch.stack(values).unsqueeze(-1).double())
    assert_same_mean(*losses)
