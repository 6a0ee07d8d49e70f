"""Gradients of the objective: against finite differences, against closed forms in expectation, against plain PEFT."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import peft
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import cross_entropy

import bayes_lora as bl
import bayes_lora.adapters.fused as fused
from bayes_lora.adapters import unwrap
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bank, build_network, build_pair
from tests.statistics import assert_mean, deviation

OBJECTIVES: dict[str, dict[str, Any]] = {
    "paper": {"kl_weight": 0.3, "cooperative_weight": 0.7, "sample_scale": 0.4},
    "elbo": {"objective": "elbo", "num_train_examples": 20, "sample_scale": 0.4},
}
RANK, WIDTH, NUM_ADAPTERS, NUM_TRACES, EPS = 3, 5, 200, 20, 0.3


def derivative(loss: Callable[[], Tensor], parameter: Tensor, direction: Tensor, step: float = 1e-3) -> float:
    """d loss(parameter + t direction) / dt at 0 by central differences of fourth order: error step^4."""
    start = parameter.detach().clone()
    total = 0.0
    with torch.no_grad():
        for multiple, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            parameter.copy_(start + multiple * step * direction)
            total += weight * loss().item()
        parameter.copy_(start)
    return total / (12 * step)


@pytest.mark.parametrize("elbo", [ItemizedELBO(), TraceMeanField_ELBO()], ids=["ItemizedELBO", "TraceMeanField_ELBO"])
@pytest.mark.parametrize("mixture", ["dense", "sparse"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_finite_differences(batch: Batch, objective: str, mixture: str, elbo: Any) -> None:
    model, guide = build_pair(build_network(num_layers=1), mixture=mixture, **OBJECTIVES[objective])

    def loss() -> Tensor:
        torch.manual_seed(5)  # the base draws of Sigma and of the noise depend on neither mu, B nor v
        return elbo.differentiable_loss(model, guide, **batch)  # type: ignore[no-any-return]

    loss().backward()
    wanted = ("lora_A", "lora_B", "classifier", "scale_r4")
    named = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
    checked = {name: p for name, p in named.items() if p.requires_grad and any(part in name for part in wanted)}
    assert {part for part in wanted for name in checked if part in name} == set(wanted)
    for name, parameter in checked.items():
        direction = torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(1))
        assert parameter.grad is not None, name
        expected = derivative(loss, parameter, direction)
        assert (parameter.grad * direction).sum().item() == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_finite_differences_of_dora_with_its_norms_held(
    batch: Batch, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DoRA's gradient is by definition the one with its norms as constants; they do move with the parameters."""
    network = build_network(num_layers=1, use_dora=True, target_modules=["query", "value", "output.dense"])
    model, guide = build_pair(network, **OBJECTIVES[objective])

    def loss() -> Tensor:
        torch.manual_seed(5)
        return ItemizedELBO().differentiable_loss(model, guide, **batch)

    loss().backward()
    wanted = ("lora_A", "lora_B", "magnitude", "scale_r4")
    named = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
    checked = {name: p for name, p in named.items() if p.requires_grad and any(part in name for part in wanted)}
    assert {part for part in wanted for name in checked if part in name} == set(wanted)

    generator = torch.Generator().manual_seed(1)
    directions = {n: torch.randn(p.shape, dtype=p.dtype, generator=generator) for n, p in checked.items()}
    found = {n: float((p.grad * directions[n]).sum()) for n, p in checked.items() if p.grad is not None}

    def derivatives() -> dict[str, float]:
        return {name: derivative(loss, parameter, directions[name]) for name, parameter in checked.items()}

    moving = derivatives()
    norms: dict[int, Tensor] = {}

    def held(magnitude: Tensor, weight: Tensor, draw: Tensor, expand: Tensor, scaling: float) -> Tensor:
        norm = (weight + scaling * expand @ draw).detach().norm(dim=1)
        return magnitude / norms.setdefault(id(weight), norm)

    monkeypatch.setattr(fused, "dora_gain", held)
    loss()
    assert len(norms) == len(model.sites.adapters)
    assert derivatives() == pytest.approx(found, rel=1e-6)
    # Negative control: moving norms are seen in B's derivatives, though not in those of m, which is in no norm.
    assert all(abs(moving[name] / found[name] - 1) > 0.01 for name in checked if "lora_B" in name)
    magnitudes = {name: value for name, value in found.items() if "magnitude" in name}
    assert {name: moving[name] for name in magnitudes} == pytest.approx(magnitudes, rel=1e-6)


@cache
def bank() -> peft.PeftModel:
    return build_bank([WIDTH] * NUM_ADAPTERS, rank=RANK)


class Draws:
    """Guide draws on many adapters with one alpha and one v: each adapter's gradient is an independent draw."""

    def __init__(self, **config: Any) -> None:
        self.model = BayesianLoRA(unwrap(bank()), bl.MonteCLoRAConfig(num_components=3, sample_scale=EPS, **config))
        self.guide = MonteCLoRAGuide(self.model)
        self.log_alpha = torch.tensor([0.7, 2.0, 1.1], dtype=torch.double).log().requires_grad_()
        self.log_v = torch.tensor([0.5, 1.5, 0.9], dtype=torch.double).log().requires_grad_()
        with torch.no_grad():
            self.guide.concentration_unconstrained.copy_(self.log_alpha.expand(NUM_ADAPTERS, -1))
            self.guide.scale_r3_unconstrained.copy_(self.log_v.expand(NUM_ADAPTERS, -1))
        self.nu = self.model.sites.degrees_of_freedom[0]

    def gradients(self, statistic: Callable[[poutine.Trace, list[Tensor], poutine.Trace], Tensor]) -> Any:
        """Draws of the gradient of a statistic (adapter,) by log alpha and by log v, (draw, ...) each, or None."""
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        parameters = (self.guide.concentration_unconstrained, self.guide.scale_r3_unconstrained)
        for _ in range(NUM_TRACES):
            trace = poutine.trace(self.guide).get_trace()
            replayed = poutine.trace(poutine.replay(self.model.sample_latents, trace=trace)).get_trace()
            noises = self.model.perturbations(replayed.nodes["_RETURN"]["value"])
            value = statistic(trace, noises, replayed)
            assert value.shape == (NUM_ADAPTERS,)
            gradients = torch.autograd.grad(value.sum(), parameters, allow_unused=True)
            for kept, gradient in zip(found, gradients, strict=True):
                if gradient is not None:
                    kept.append(gradient)
        return [torch.cat(kept) if kept else None for kept in found]

    def expected(self, closed_form: Tensor) -> Any:
        """Gradient of a closed form by log alpha and by log v."""
        return torch.autograd.grad(closed_form, (self.log_alpha, self.log_v), allow_unused=True)

    @property
    def sum_of_squares(self) -> Tensor:
        """E[sum pi^2] = sum a_k (a_k + 1) / (a (a + 1))."""
        a = self.log_alpha.exp()
        return (a * (a + 1)).sum() / (a.sum() * (a.sum() + 1))


def test_alpha_through_the_weights() -> None:
    draws = Draws()
    alpha, v = draws.gradients(lambda trace, *_: trace.nodes["pi"]["value"].square().sum(-1))
    assert v is None
    assert_mean(alpha, draws.expected(draws.sum_of_squares)[0])
    # Negative control: treating pi as a fixed draw, or alpha as on another scale, would be seen.
    assert deviation(alpha, 0.0).abs().min() > 8


def test_v_through_the_covariance() -> None:
    draws = Draws()
    alpha, v = draws.gradients(lambda trace, *_: trace.nodes["Sigma_r3"]["value"].diagonal(dim1=-2, dim2=-1).sum(-1))
    assert alpha is None
    assert_mean(v, draws.expected(draws.nu * draws.log_v.exp().sum())[1])


def test_v_through_the_normal_kl() -> None:
    draws = Draws(degrees_of_freedom=6.5)

    def normal_kl(trace: poutine.Trace, _: list[Tensor], replayed: poutine.Trace) -> Tensor:
        kl = kl_divergence(trace.nodes["S_r3_n5"]["fn"], replayed.nodes["S_r3_n5"]["fn"])
        return kl.mean(-1)

    _, v = draws.gradients(normal_kl)
    # Of 1/2 (nu tr V - psi_r(nu/2) - r ln 2 - ln|V| - r), the part that v moves.
    closed_form = (draws.nu * draws.log_v.exp().sum() - draws.log_v.sum()) / 2
    assert_mean(v, draws.expected(closed_form)[1])


@pytest.mark.parametrize("outer", [1, 2])
@pytest.mark.parametrize("sampler", ["collapsed", "explicit"])
@pytest.mark.parametrize("mixture", ["dense", "sparse"])
def test_alpha_and_v_through_the_noise(mixture: str, sampler: str, outer: int) -> None:
    draws = Draws(mixture=mixture, sampler=sampler, num_outer_samples=outer, degrees_of_freedom=6.5)
    alpha, v = draws.gradients(lambda _, noises, *__: noises[0].square().mean(-1).sum(-1))
    weights = draws.sum_of_squares if mixture == "dense" else 1.0
    variance = EPS**2 * draws.nu * draws.log_v.exp().sum() * weights / outer
    expected = draws.expected(variance)
    assert_mean(v, expected[1])
    if mixture == "dense":
        assert_mean(alpha, expected[0])
    else:
        assert alpha is None


def test_sparse_alpha_learns_from_the_cooperative_term_alone(batch: Batch) -> None:
    def gradient(mixture: str, weight: float) -> Tensor | None:
        network = build_network(num_layers=1)
        model, guide = build_pair(network, mixture=mixture, kl_weight=0.0, cooperative_weight=weight, sample_scale=0.4)
        torch.manual_seed(0)
        ItemizedELBO()(model, guide)(**batch).backward()
        return guide.concentration_unconstrained.grad  # type: ignore[no-any-return]

    without, dense = gradient("sparse", 0.0), gradient("dense", 0.0)
    assert without is None or not without.any()
    assert dense is not None
    assert dense.any()
    _, guide = build_pair(build_network(num_layers=1))
    torch.manual_seed(0)
    pi = poutine.trace(guide).get_trace().nodes["pi"]["value"]
    (expected,) = torch.autograd.grad(0.7 * pi.square().sum(-1).mean(), guide.concentration_unconstrained)
    torch.testing.assert_close(gradient("sparse", 0.7), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_noise_it_is_plain_lora(batch: Batch, dtype: torch.dtype) -> None:
    plain = build_network(dtype=dtype)
    network = copy.deepcopy(plain)
    model, guide = build_pair(network, sample_scale=0.0)
    trace = poutine.trace(guide).get_trace()
    logits = poutine.replay(model, trace=trace)(**batch)
    assert torch.equal(logits, plain(**batch).logits)
    ItemizedELBO()(model, guide)(**batch).backward()
    cross_entropy(plain(**batch).logits.to(torch.promote_types(dtype, torch.float32)), batch["labels"]).backward()
    trained = dict(network.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            # Sums of other order; an entry may be small beside what it is the sum of.
            rounding = 32 * torch.finfo(dtype).eps if dtype != torch.bfloat16 else torch.finfo(dtype).eps
            atol = rounding * float(parameter.grad.abs().max())
            torch.testing.assert_close(trained[name].grad, parameter.grad, rtol=0.0, atol=atol)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_after_a_step_the_network_is_the_plain_peft_model(batch: Batch, objective: str) -> None:
    network = build_network()
    plain = copy.deepcopy(network)
    model, guide = build_pair(network, **OBJECTIVES[objective])
    before = network(**batch).logits
    SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceMeanField_ELBO()).step(**batch)
    plain.load_state_dict(network.state_dict())
    expected = plain(**batch).logits
    for mode in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(network(**batch).logits, expected)
    assert not torch.equal(before, expected)
    assert not torch.equal(poutine.trace(model).get_trace(**batch).nodes["_RETURN"]["value"], expected)
