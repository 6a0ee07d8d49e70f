"""What the sites draw: moments of pi, Sigma and A against closed forms, and the sites themselves."""

import itertools
from functools import cache
from typing import Any

import peft
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

import bayes_lora as bl
from bayes_lora.adapters import AdapterGroup, unwrap
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bank, build_network, build_pair
from tests.statistics import assert_mean, assert_same_mean, deviation

EPS = 0.3
NUM_TRACES = 40
# Adapters of one group are given the same alpha and v, so that one trace holds many independent draws of each group.
PER_GROUP = 100

PAPER_CASES: list[dict[str, Any]] = [
    {"mixture": mixture, "sampler": sampler, "num_components": components, "num_outer_samples": outer}
    for mixture, sampler, components, outer in itertools.product(
        ["dense", "sparse"], ["collapsed", "explicit"], [1, 3], [1, 2]
    )
]
ELBO_CASES: list[dict[str, Any]] = [
    {"objective": "elbo", "num_train_examples": 9, "mixture": mixture, "num_components": 3}
    for mixture in ("dense", "sparse")
]
CASES = PAPER_CASES + ELBO_CASES


@cache
def bank() -> peft.PeftModel:
    """Three groups of adapters: rank 3 with widths 5 and 4, and rank 2 with width 5."""
    widths = [5] * PER_GROUP + [4] * PER_GROUP + [5] * PER_GROUP
    return build_bank(widths, rank=3, rank_pattern={r"layers\.2\d\d": 2})


def build(**config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """Model and guide on the bank; alpha and v differ between groups, not within one."""
    model = BayesianLoRA(unwrap(bank()), bl.MonteCLoRAConfig(sample_scale=EPS, **config))
    guide = MonteCLoRAGuide(model)
    with torch.no_grad():
        for group in model.sites.groups:
            alpha = torch.tensor([0.7, 2.0, 1.1])[: model.config.num_components] * (1 + 0.2 * group.in_features)
            guide.concentration_unconstrained[group.start : group.stop] = alpha.double().log()
            rows = model.sites.ranks[group.rank]
            v = torch.tensor([0.5, 1.5, 0.9])[: group.rank] * (1 + 0.1 * group.in_features)
            log_v = getattr(guide, f"scale_r{group.rank}_unconstrained")
            log_v[group.start - rows.start : group.stop - rows.start] = v.double().log()
    return model, guide


def draw(model: BayesianLoRA, guide: Any) -> dict[str, Tensor]:
    """Independent draws of every site, and of the noise P_{group}, with (trace, adapter) merged into the first axis."""
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for _ in range(NUM_TRACES):
            trace = poutine.trace(guide).get_trace()
            noises = model.perturbations(poutine.replay(model.sample_latents, trace=trace)())
            for group, noise in zip(model.sites.groups, noises, strict=True):
                rows = slice(group.start, group.stop)
                found.setdefault("pi" + group.suffix, []).append(trace.nodes["pi"]["value"][..., rows, :])
                start = model.sites.ranks[group.rank].start
                sigma = trace.nodes[f"Sigma_r{group.rank}"]["value"]
                within = sigma[..., group.start - start : group.stop - start, :, :]
                found.setdefault("Sigma" + group.suffix, []).append(within)
                found.setdefault("P" + group.suffix, []).append(noise)
    # Where there are outer draws they are independent too; they lead in pi and Sigma, never in the noise.
    event = {"pi": 1, "Sigma": 2, "P": 2}
    return {name: torch.stack(values).flatten(0, -1 - event[name.split("_")[0]]) for name, values in found.items()}


def parameters(model: BayesianLoRA, guide: MonteCLoRAGuide, group: AdapterGroup) -> tuple[Tensor, Tensor, float]:
    """alpha (component,), v (rank,) and nu of a group's adapters."""
    alpha = guide.concentration[group.start].detach()
    v = guide.scale(group.rank)[group.start - model.sites.ranks[group.rank].start].detach()
    return alpha, v, model.sites.degrees_of_freedom[group.start]


def sum_of_squares_moments(alpha: Tensor) -> tuple[float, float]:
    """E[sum_k pi_k^2] and E[(sum_k pi_k^2)^2] under Dirichlet(alpha).

    By E[prod_k pi_k^m_k] = prod_k a_k^(m_k) / a^(sum m_k), with rising powers.
    """
    a = [float(x) for x in alpha]
    total = sum(a)
    second = sum(x * (x + 1) for x in a) / (total * (total + 1))
    fourth = sum(
        x * (x + 1) * ((x + 2) * (x + 3) if k == j else y * (y + 1))
        for (k, x), (j, y) in itertools.product(enumerate(a), repeat=2)
    )
    return second, fourth / (total * (total + 1) * (total + 2) * (total + 3))


def noise_moments(model: BayesianLoRA, guide: MonteCLoRAGuide, group: AdapterGroup) -> tuple[Tensor, Tensor, Tensor]:
    """E[P_j^2], E[P_j^4] and E[P_ji^2 P_ji'^2] of two columns i, i', each (rank,), from docs/theory.md."""
    alpha, v, nu = parameters(model, guide, group)
    second, fourth = sum_of_squares_moments(alpha) if model.config.mixture == "dense" else (1.0, 1.0)
    outer = model.config.num_outer_samples
    variance = EPS**2 * second * nu * v
    # Given pi and Sigma the columns are independent normals of variance s^2 Sigma_jj, and Sigma_jj ~ v_j chi2(nu).
    squared = EPS**4 * fourth * nu * (nu + 2) * v**2
    pairs = outer * (outer - 1) * variance**2
    return (
        variance / outer,
        (outer * 3 * squared + 3 * pairs) / outer**4,
        (outer * squared + pairs) / outer**4,
    )


@pytest.mark.parametrize("config", CASES, ids=lambda config: "-".join(map(str, config.values())))
def test_moments(config: dict[str, Any]) -> None:
    # Well above the rank: there the fourth powers have tails light enough for their standard errors to mean something.
    model, guide = build(degrees_of_freedom=12.5, **config)
    assert len(model.sites.groups) == 3
    draws = draw(model, guide)
    for group in model.sites.groups:
        alpha, v, nu = parameters(model, guide, group)
        pi, sigma, noise = (draws[name + group.suffix] for name in ("pi", "Sigma", "P"))
        if len(alpha) == 1:
            torch.testing.assert_close(pi, torch.ones_like(pi), rtol=0, atol=1e-15)
        else:
            assert_mean(pi, alpha / alpha.sum())
            assert_mean(pi.square().sum(-1), sum_of_squares_moments(alpha)[0])
        mean = torch.diag(nu * v)
        assert_mean(sigma, mean)
        assert_mean((sigma - mean).square(), nu * (torch.diag(v**2) + torch.outer(v, v)))
        # Columns of one adapter share pi and Sigma: (draw, rank, column) is averaged over columns first.
        second, fourth, across = noise_moments(model, guide, group)
        assert_mean(noise, 0.0)
        products = torch.einsum("drc,dsc->drs", noise, noise) / group.in_features
        assert_mean(products, torch.diag(second))
        assert_mean(noise.pow(4).mean(-1), fourth)
        assert_mean(noise[..., 0].square() * noise[..., 1].square(), across)


@pytest.mark.parametrize("mixture", ["dense", "sparse"])
def test_collapsed_and_explicit_agree(mixture: str) -> None:
    samples = []
    for sampler in ("collapsed", "explicit"):
        model, guide = build(mixture=mixture, sampler=sampler, num_components=3, degrees_of_freedom=12.5)
        samples.append(draw(model, guide))
    for group in model.sites.groups:
        for power in (1, 2, 4):
            first, second = (sample["P" + group.suffix].pow(power) for sample in samples)
            assert_same_mean(first, second)


@pytest.mark.parametrize("objective", ["paper", "elbo"])
@pytest.mark.parametrize("nu", ["rank", "in_features"])
def test_variances_at_each_adapters_own_degrees_of_freedom(objective: str, nu: str) -> None:
    own = {"objective": objective} | ({"num_train_examples": 9} if objective == "elbo" else {})
    model, guide = build(num_components=3, degrees_of_freedom=nu, **own)
    draws = draw(model, guide)
    for group in model.sites.groups:
        _, v, found = parameters(model, guide, group)
        assert found == (group.rank if nu == "rank" else group.in_features)
        assert_mean(draws["Sigma" + group.suffix], torch.diag(found * v))
        assert_mean(draws["P" + group.suffix].square().mean(-1), noise_moments(model, guide, group)[0])


def test_moments_of_another_posterior_are_told_apart() -> None:
    model, guide = build(num_components=3)
    noise = draw(model, guide)["P_r3_n5"]
    alpha, v, nu = parameters(model, guide, model.sites.groups[-1])
    with_lemma_7s_extra_factor = EPS**2 * sum_of_squares_moments(alpha)[0] * nu * v / 3
    assert deviation(noise.square().mean(-1), with_lemma_7s_extra_factor).abs().min() > 8


def test_the_elbos_posterior_starts_at_identity_covariance() -> None:
    model = BayesianLoRA(unwrap(bank()), bl.MonteCLoRAConfig(objective="elbo", num_train_examples=9, sample_scale=EPS))
    guide = MonteCLoRAGuide(model)
    draws = draw(model, guide)
    for group in model.sites.groups:
        _, v, nu = parameters(model, guide, group)
        assert nu == group.in_features
        torch.testing.assert_close(nu * v, torch.ones_like(v))
        assert_mean(draws["Sigma" + group.suffix], torch.eye(group.rank, dtype=torch.double))


def test_the_prior_outside_a_guide() -> None:
    model, _ = build(num_components=3, prior_concentration=0.5, degrees_of_freedom=6)
    draws = draw(model, model.sample_latents)
    for group in model.sites.groups:
        identity = torch.eye(group.rank, dtype=torch.double)
        assert_mean(draws["pi" + group.suffix].square().sum(-1), sum_of_squares_moments(torch.full((3,), 0.5))[0])
        assert_mean(draws["Sigma" + group.suffix], 6 * identity)
        # The prior of S does not depend on Sigma: unit variance, scaled by eps^2 E[sum pi^2].
        noise = draws["P" + group.suffix]
        second = EPS**2 * sum_of_squares_moments(torch.full((3,), 0.5))[0]
        assert_mean(torch.einsum("drc,dsc->drs", noise, noise) / group.in_features, second * identity)


def test_the_elbos_prior_is_on_a_itself() -> None:
    model, _ = build(objective="elbo", num_train_examples=9, prior_scale=0.2, num_components=3)
    noise = draw(model, model.sample_latents)["P_r3_n5"].unflatten(0, (NUM_TRACES, PER_GROUP))
    values = noise + model.sites.means(model.sites.groups[-1]).mT.detach()
    assert_mean(values.flatten(0, 1).square(), 0.04)


def test_the_prior_samples_labels(batch: Batch) -> None:
    model, _ = build_pair()
    labels = batch.pop("labels")
    trace = poutine.trace(model).get_trace(**batch)
    drawn = trace.nodes["y"]["value"]
    assert not trace.nodes["y"]["is_observed"]
    assert drawn.shape == labels.shape
    assert set(drawn.tolist()) <= {0, 1, 2}
    assert trace.nodes["_RETURN"]["value"].shape == (5, 3)


def sample_sites(trace: poutine.Trace) -> set[str]:
    return {name for name, node in trace.nodes.items() if node["type"] == "sample"}


def test_sites_do_not_grow_with_the_number_of_adapters(batch: Batch) -> None:
    sites = []
    for num_layers in (2, 6):
        model, guide = build_pair(build_network(num_layers=num_layers))
        assert len(model.sites.adapters) == 2 * num_layers
        traces = poutine.trace(guide).get_trace(**batch), poutine.trace(model).get_trace(**batch)
        sites.append([sample_sites(trace) for trace in traces])
    assert sites[0] == sites[1]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"sampler": "explicit", "num_outer_samples": 2},
            {
                "pi": {"outer": 2, "adapter": 4},
                "Sigma_r4": {"outer_r4": 2, "adapter_r4": 4},
                "S_r4_n16": {"outer_r4_n16": 2, "adapter_r4_n16": 4, "component_r4_n16": 3, "column_r4_n16": 16},
            },
        ),
        (
            {"sampler": "collapsed"},
            {
                "pi": {"adapter": 4},
                "Sigma_r4": {"adapter_r4": 4},
                "S_r4_n16": {"adapter_r4_n16": 4, "column_r4_n16": 16},
            },
        ),
        (
            {"objective": "elbo", "num_train_examples": 9},
            {
                "pi": {"adapter": 4},
                "Sigma_r4": {"adapter_r4": 4},
                "A_r4_n16": {"adapter_r4_n16": 4, "column_r4_n16": 16},
            },
        ),
    ],
    ids=["explicit, two outer draws", "collapsed", "elbo"],
)
def test_plates_and_coordinates(batch: Batch, config: dict[str, Any], expected: dict[str, dict[str, int]]) -> None:
    model, guide = build_pair(num_components=3, **config)
    data = {"logits": {"data": 5}, "y": {"data": 5}}
    cooperative: dict[str, Any] = {} if "objective" in config else {"cooperative": {}}
    for program, sites in ((guide, expected), (model, expected | cooperative | data)):
        trace = poutine.trace(program).get_trace(**batch)
        found = {}
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and not pyro.poutine.util.site_is_subsample(node):
                frames = sorted(node["cond_indep_stack"], key=lambda frame: frame.dim)
                assert [frame.dim for frame in frames] == list(range(-len(frames), 0))
                found[name] = {frame.name: frame.size for frame in frames}
        assert found == sites
        assert {name: list(plates) for name, plates in found.items()} == {
            name: list(plates) for name, plates in sites.items()
        }
    layer = "bert.encoder.layer.{}.attention.self.{}"
    assert model.sites.names == tuple(layer.format(i, part) for i in (0, 1) for part in ("query", "value"))


def test_the_prior_without_labels_is_a_plain_call(batch: Batch) -> None:
    del batch["labels"]
    model, _ = build_pair(sample_scale=0.3)
    assert not torch.equal(model(**batch), model(**batch))
