"""The Pyro ELBO is the objective: against closed forms written here, with numpy and scipy, from docs/theory.md."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.special import digamma, gammaln

from bayes_lora.adapters import unwrap
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, build_pair

NUS: list[Any] = ["rank", "in_features", 40.5]
PAPER_GRID = list(itertools.product([1, 3], [1, 2], NUS, ["dense", "sparse"], ["collapsed", "explicit"]))
WEIGHTS = {"kl_weight": 0.3, "cooperative_weight": 0.7, "sample_scale": 0.4, "prior_concentration": 0.8}


def dirichlet_kl(a: np.ndarray, a0: float) -> float:
    total, n = a.sum(), len(a)
    normalizers = gammaln(total) - gammaln(a).sum() - gammaln(n * a0) + n * gammaln(a0)
    return float(normalizers + ((a - a0) * (digamma(a) - digamma(total))).sum())


def wishart_kl(v: np.ndarray, nu: float, c: float) -> float:
    return float((nu * (v / c).sum() - nu * np.log(v / c).sum() - nu * len(v)) / 2)


def normal_kl(covariance: np.ndarray, shift: np.ndarray, prior_scale: float) -> float:
    r, variance = len(covariance), prior_scale**2
    quadratic = np.trace(covariance) / variance + shift @ shift / variance
    return float((quadratic - np.linalg.slogdet(covariance)[1] + r * math.log(variance) - r) / 2)


def plain_nll(model: BayesianLoRA, noises: dict[str, np.ndarray], batch: Batch) -> float:
    """Cross entropy of the plain PEFT model with `noises` added to its LoRA-A weights by hand."""
    network = unwrap(copy.deepcopy(model.network))
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for name, noise in noises.items():
            weights[f"base_model.model.{name}.lora_A.default.weight"].add_(torch.from_numpy(noise))
        return float(network(**batch).loss)


def column_values(model: BayesianLoRA, trace: poutine.Trace) -> dict[str, np.ndarray]:
    """Each adapter's share of its column site, by module name."""
    values = {}
    for group in model.sites.groups:
        value = trace.nodes[model.sites.column_site(group)]["value"].detach().numpy()
        axis = 0 if model.config.num_outer_samples == 1 else 1
        for position in range(len(group)):
            values[model.sites.names[group.start + position]] = value.take(position, axis)
    return values


def covariances(model: BayesianLoRA, trace: poutine.Trace) -> dict[str, np.ndarray]:
    """Each adapter's covariances (outer, rank, rank), by module name."""
    found = {}
    for rank, rows in model.sites.ranks.items():
        value = trace.nodes[f"Sigma_r{rank}"]["value"].detach().numpy().reshape(-1, rows.stop - rows.start, rank, rank)
        for position, name in enumerate(model.sites.names[rows]):
            found[name] = value[:, position]
    return found


def paper_loss(model: BayesianLoRA, guide: MonteCLoRAGuide, trace: poutine.Trace, batch: Batch) -> float:
    """The loss of docs/theory.md: NLL + eta/L sum_l (KL_D + KL_W + KL_N) + coop/L sum_l sum_k pi_k^2, from a trace."""
    config, names = model.config, model.sites.names
    num_outer = config.num_outer_samples
    pi = trace.nodes["pi"]["value"].detach().numpy().reshape(num_outer, len(names), -1)
    columns, sigma = column_values(model, trace), covariances(model, trace)
    kl: Any = 0.0
    cooperative, noises = 0.0, {}
    for position, name in enumerate(names):
        adapter = model.sites.adapters[position]
        alpha = guide.concentration[position].detach().numpy()
        row = position - model.sites.ranks[adapter.rank].start
        v = guide.scale(adapter.rank)[row].detach().numpy()
        choice = config.degrees_of_freedom
        nu = {"rank": adapter.rank, "in_features": adapter.in_features}.get(choice, choice)  # type: ignore[arg-type]
        kl += dirichlet_kl(alpha, config.prior_concentration) + wishart_kl(v, nu, 1.0)  # type: ignore[arg-type]
        kl += np.mean([normal_kl(s, np.zeros(len(s)), 1.0) for s in sigma[name]])
        cooperative += (pi[:, position] ** 2).sum() / num_outer
        draws = columns[name].reshape(num_outer, -1, adapter.in_features, adapter.rank)
        noise = np.zeros((adapter.in_features, adapter.rank))
        for j in range(num_outer):
            weights = pi[j, position]
            if config.sampler == "explicit":
                chosen = np.eye(len(weights))[weights.argmax()] if config.mixture == "sparse" else weights
                noise += sum(w * s for w, s in zip(chosen, draws[j], strict=True))
            else:
                noise += draws[j, 0] * (1.0 if config.mixture == "sparse" else math.sqrt((weights**2).sum()))
        noises[name] = config.sample_scale * noise.T / num_outer
    eta, coop = config.kl_weight, config.cooperative_weight
    assert eta is not None
    assert coop is not None
    return plain_nll(model, noises, batch) + float(eta * kl + coop * cooperative) / len(names)


def elbo_loss(model: BayesianLoRA, guide: MonteCLoRAGuide, trace: poutine.Trace, batch: Batch) -> float:
    """NLL + temperature / n sum_l [KL_D + KL_W + sum_columns KL(N(mu_i, s^2 Sigma) || N(0, prior_scale^2 I))]."""
    config = model.config
    pi = trace.nodes["pi"]["value"].detach().numpy()
    columns, sigma = column_values(model, trace), covariances(model, trace)
    kl, noises = 0.0, {}
    for position, (name, adapter) in enumerate(zip(model.sites.names, model.sites.adapters, strict=True)):
        alpha = guide.concentration[position].detach().numpy()
        row = position - model.sites.ranks[adapter.rank].start
        v = guide.scale(adapter.rank)[row].detach().numpy()
        choice = config.degrees_of_freedom
        nu = {"rank": adapter.rank, "in_features": adapter.in_features}.get(choice, choice)  # type: ignore[arg-type]
        kl += dirichlet_kl(alpha, config.prior_concentration) + wishart_kl(v, nu, 1 / nu)  # type: ignore[arg-type,operator]
        mu = adapter.linear.weight.detach().numpy()
        variance = config.sample_scale**2 * (1.0 if config.mixture == "sparse" else (pi[position] ** 2).sum())
        kl += sum(normal_kl(variance * sigma[name][0], column, config.prior_scale or 0) for column in mu.T)
        noises[name] = columns[name].T - mu
    assert config.kl_temperature is not None
    assert config.num_train_examples is not None
    return plain_nll(model, noises, batch) + config.kl_temperature / config.num_train_examples * kl


def pyro_loss(elbo: Any, model: BayesianLoRA, guide: Any, batch: Batch) -> tuple[float, poutine.Trace]:
    """The ELBO's value, and the guide trace it was computed on."""
    kept: list[poutine.Trace] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with poutine.trace() as handler:
            value = guide(*args, **kwargs)
        kept.append(handler.trace)
        return value

    torch.manual_seed(3)
    return float(elbo.loss(model, recorded, **batch)), kept[0]


@pytest.mark.parametrize(("components", "outer", "nu", "mixture", "sampler"), PAPER_GRID)
def test_pyro_elbo_is_the_papers_loss(
    batch: Batch,
    components: int,
    outer: int,
    nu: Any,
    mixture: str,
    sampler: str,
) -> None:
    # Ranks 4 and 2, input widths 16 and 24.
    network = build_network(target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    model, guide = build_pair(
        network,
        num_components=components,
        num_outer_samples=outer,
        degrees_of_freedom=nu,
        mixture=mixture,
        sampler=sampler,
        **WEIGHTS,
    )
    assert len(model.sites.groups) == 3
    for elbo in (TraceMeanField_ELBO(), ItemizedELBO()):
        value, trace = pyro_loss(elbo, model, guide, batch)
        assert value == pytest.approx(paper_loss(model, guide, trace, batch), rel=1e-9)


@pytest.mark.parametrize("mixture", ["dense", "sparse"])
@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("components", [1, 3])
def test_pyro_elbo_is_the_evidence_lower_bound(batch: Batch, components: int, nu: Any, mixture: str) -> None:
    network = build_network(target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    model, guide = build_pair(
        network,
        objective="elbo",
        num_components=components,
        degrees_of_freedom=nu,
        mixture=mixture,
        sample_scale=0.4,
        num_train_examples=70,
        kl_temperature=0.3,
        prior_scale=0.6,
    )
    for elbo in (TraceMeanField_ELBO(), ItemizedELBO()):
        value, trace = pyro_loss(elbo, model, guide, batch)
        assert value == pytest.approx(elbo_loss(model, guide, trace, batch), rel=1e-9)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_scale_in_the_guide_is_not_the_papers_loss(batch: Batch, factor: float) -> None:
    model, guide = build_pair(**WEIGHTS)
    value, trace = pyro_loss(TraceMeanField_ELBO(), model, poutine.scale(guide, scale=factor), batch)
    assert value != pytest.approx(paper_loss(model, guide, trace, batch), rel=1e-3)


def trace_elbo_deviation(model: Any, guide: Any, batch: Batch, num_draws: int = 150) -> float:
    """Mean of Trace_ELBO - TraceMeanField_ELBO over common draws, in standard errors; its expectation is 0."""
    differences = []
    for seed in range(num_draws):
        losses = []
        for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
            torch.manual_seed(seed)
            losses.append(elbo.loss(model, guide, **batch))
        differences.append(losses[0] - losses[1])
    return float(np.mean(differences) / (np.std(differences, ddof=1) / math.sqrt(num_draws)))


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "collapsed", **WEIGHTS},
        {"sampler": "explicit", "num_outer_samples": 2, **WEIGHTS},
        {"objective": "elbo", "num_train_examples": 70, "sample_scale": 0.4},
        {"normal_kl": "expected", **WEIGHTS},
        {"normal_kl": "expected", "sampler": "explicit", "num_outer_samples": 2, **WEIGHTS},
        {"normal_kl": "expected", "objective": "elbo", "num_train_examples": 70, "sample_scale": 0.4},
    ],
    ids=["collapsed", "explicit, two outer draws", "elbo", "expected", "expected, two outer draws", "expected, elbo"],
)
def test_trace_elbo_agrees(batch: Batch, options: Any) -> None:
    model, guide = build_pair(build_network(num_layers=1), **options)
    assert abs(trace_elbo_deviation(model, guide, batch)) < 4


class OneSided(BayesianLoRA):
    """The defect the shared sites exclude: the model's latent sites without their scale."""

    def sample_latents(self) -> Any:
        weights = {name: handler.weight for name, handler in self.sites._handlers.items()}
        for handler in self.sites._handlers.values():
            handler.weight = 1.0
        try:
            return super().sample_latents()
        finally:
            for name, weight in weights.items():
                self.sites._handlers[name].weight = weight


def test_a_one_sided_scale_is_caught_by_trace_elbo(batch: Batch) -> None:
    model, guide = build_pair(build_network(num_layers=1), **WEIGHTS)
    model.__class__ = OneSided
    assert abs(trace_elbo_deviation(model, guide, batch)) > 8


def test_terms_sum_to_the_loss(batch: Batch) -> None:
    model, guide = build_pair(**WEIGHTS)
    elbo = ItemizedELBO(num_particles=2)
    loss = elbo(model, guide)(**batch)
    assert set(elbo.terms) == {"nll", "kl_dirichlet", "kl_wishart", "kl_normal", "cooperative"}
    assert sum(elbo.terms.values()).item() == pytest.approx(loss.item(), rel=1e-12)  # type: ignore[union-attr]


def test_zero_weights_leave_the_likelihood(batch: Batch) -> None:
    model, guide = build_pair(kl_weight=0.0, cooperative_weight=0.0)
    for elbo in (TraceMeanField_ELBO(), ItemizedELBO()):
        torch.manual_seed(0)
        loss = elbo.loss(model, guide, **batch)
        torch.manual_seed(0)
        with pyro.poutine.block(), torch.no_grad():
            trace = poutine.trace(guide).get_trace()
            logits = poutine.replay(model, trace=trace)(**batch)
        assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, batch["labels"]).item(), rel=1e-12)


def test_a_joint_draw_of_the_guide_alone_counts() -> None:
    """A bare autoguide carries its density in a site that the model has not."""

    def toy() -> None:
        x = pyro.sample("x", pyro.distributions.Normal(0.3, 2.0).expand([3]).to_event(1))
        pyro.sample("y", pyro.distributions.Normal(x.sum(), 1.0), obs=torch.tensor(1.5))

    with pyro.settings.context(module_local_params=True):
        guide = pyro.infer.autoguide.AutoMultivariateNormal(toy)
        losses = []
        for elbo in (ItemizedELBO(), pyro.infer.Trace_ELBO()):
            torch.manual_seed(3)
            guide()  # its parameters start at random, at the first call
            torch.manual_seed(4)
            losses.append(elbo.loss(toy, guide))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
