"""The mean-field guide: its KL in closed form, its objective under every ELBO, plain LoRA where sigma vanishes."""

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from transformers import TrainingArguments

import bayes_lora as bl
from bayes_lora.adapters import AdapterGroup, unwrap
from bayes_lora.distributions.column_normal import ColumnNormal
from bayes_lora.distributions.diagonal_normal import DiagonalNormal
from bayes_lora.errors import ConfigurationError, UnsupportedELBOError
from bayes_lora.inference import FitOptions, ItemizedELBO, SVITrainer, fit, predict
from bayes_lora.inference.guides.mean_field import MeanFieldGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bank, build_network, learnable_rows
from tests.statistics import assert_mean

ELBO: dict[str, Any] = {"objective": "elbo", "num_train_examples": 70, "kl_temperature": 0.3, "prior_scale": 0.6}
Pair = tuple[BayesianLoRA, MeanFieldGuide]


def build(network: Any = None, *, init_scale: float | None = None, **config: Any) -> Pair:
    """Ranks 4 and 2, input widths 16 and 24; sigma moved away from its start."""
    if network is None:
        network = build_network(target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    model = BayesianLoRA(network, bl.MonteCLoRAConfig(**ELBO | config))
    guide = MeanFieldGuide(model, init_scale=init_scale)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model, guide


def sigma(model: BayesianLoRA, guide: MeanFieldGuide, group: AdapterGroup) -> Tensor:
    """The obvious way: eps exp(log s), adapter by adapter."""
    logarithms = guide.state_dict()[f"scale_r{group.rank}_n{group.in_features}_unconstrained"]
    eps = model.sample_scale[group.start : group.stop]
    return torch.stack([scale * s.exp() for scale, s in zip(eps, logarithms, strict=True)])


def test_kl_is_that_of_dense_gaussians() -> None:
    torch.manual_seed(0)
    loc, scale = torch.randn(2, 5, 3).double(), torch.rand(2, 5, 3).double() + 0.1
    root = torch.randn(2, 3, 3).double()
    factor = torch.linalg.cholesky(root @ root.mT + torch.eye(3))
    for prior_loc in (None, torch.randn(2, 5, 3).double()):
        found = kl_divergence(DiagonalNormal(loc, scale), ColumnNormal(factor, 5, prior_loc))
        dense = MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
        mean = torch.zeros_like(loc) if prior_loc is None else prior_loc
        expected = kl_divergence(dense, MultivariateNormal(mean, scale_tril=factor.unsqueeze(1)))
        torch.testing.assert_close(found, expected)
        assert found.shape == (2, 5)


def test_distribution_is_an_independent_normal() -> None:
    torch.manual_seed(0)
    loc, scale = torch.randn(2, 5, 3).double(), torch.rand(2, 5, 3).double() + 0.1
    mine, torchs = DiagonalNormal(loc, scale), torch.distributions.Independent(Normal(loc, scale), 1)
    value = torch.randn(4, 2, 5, 3).double()
    torch.testing.assert_close(mine.log_prob(value), torchs.log_prob(value))
    assert (mine.batch_shape, mine.event_shape) == (torchs.batch_shape, torchs.event_shape)
    assert torch.equal(mine.mean, loc)
    assert torch.equal(mine.variance, scale.square())
    draws = mine.rsample(torch.Size([4000]))
    assert_mean(draws, loc)
    assert_mean((draws - loc).square(), scale.square())
    wide = mine.expand((7, 2, 5))
    assert wide.rsample().shape == (7, 2, 5, 3)
    torch.testing.assert_close(wide.log_prob(value[0]), torchs.log_prob(value[0]).expand(7, -1, -1))


def expected_loss(model: BayesianLoRA, guide: MeanFieldGuide, trace: poutine.Trace, batch: Batch) -> float:
    """NLL at the draw + temperature / n * sum of torch's KL over every entry of LoRA-A, adapter by adapter."""
    kl = 0.0
    for group in model.sites.groups:
        for adapter, deviation in zip(
            model.sites.adapters[group.start : group.stop], sigma(model, guide, group), strict=True
        ):
            q = Normal(adapter.linear.weight, deviation.mT)
            kl += kl_divergence(q, Normal(0.0, torch.tensor(0.6, dtype=torch.double))).sum().item()
    with torch.no_grad(), poutine.block():
        logits = poutine.replay(model, trace=trace)(**batch)
    nll = torch.nn.functional.cross_entropy(logits, batch["labels"]).item()
    return nll + 0.3 / 70 * kl


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO(), ItemizedELBO()], ids=lambda elbo: type(elbo).__name__)
def test_objective_is_the_evidence_lower_bound(batch: Batch, elbo: Any) -> None:
    model, guide = build(sample_scale=0.2)
    assert len(model.sites.groups) == 3
    model.set_sample_scale(torch.linspace(0.1, 0.3, len(model.sites.adapters)))
    torch.manual_seed(3)
    value = elbo.loss(model, guide, **batch)
    torch.manual_seed(3)
    trace = poutine.trace(guide).get_trace()
    assert value == pytest.approx(expected_loss(model, guide, trace, batch), rel=1e-9)
    # One-sided scales go unnoticed by Pyro; here they would show.
    torch.manual_seed(3)
    assert elbo.loss(model, poutine.scale(guide, scale=2.0), **batch) != pytest.approx(value, rel=1e-3)


def test_what_is_left_at_its_prior_costs_nothing(batch: Batch) -> None:
    model, guide = build(num_components=3)
    elbo = ItemizedELBO()
    elbo.loss(model, guide, **batch)
    assert elbo.terms["kl_dirichlet"] == 0
    assert elbo.terms["kl_wishart"] == 0
    assert set(elbo.terms) == {"nll", "kl_dirichlet", "kl_wishart", "kl_normal"}


def test_trace_elbo_agrees(batch: Batch) -> None:
    model, guide = build(build_network(num_layers=1), sample_scale=0.2)
    differences = []
    for seed in range(80):
        losses = []
        for elbo in (Trace_ELBO(), ItemizedELBO()):
            torch.manual_seed(seed)
            losses.append(elbo.loss(model, guide, **batch))
        differences.append(losses[0] - losses[1])
    error = np.std(differences, ddof=1) / math.sqrt(len(differences))
    assert error > 0
    assert abs(np.mean(differences)) < 4 * error


def test_the_kl_alone_would_give_the_prior() -> None:
    """d loss / d ln sigma = temperature / n (sigma^2 / p^2 - 1), and d loss / d mu = temperature / n mu / p^2."""
    model, guide = build(build_bank([6, 5], rank=3), sample_scale=0.2)
    trace = poutine.trace(guide).get_trace()
    for group in model.sites.groups:
        site = trace.nodes[model.sites.column_site(group)]
        prior = ColumnNormal(0.6 * torch.eye(3).double().expand(1, 3, 3), group.in_features)
        (site["scale"] * kl_divergence(site["fn"], prior)).sum().backward()
        gradient = getattr(guide, f"scale_r3_n{group.in_features}_unconstrained").grad
        expected = 0.3 / 70 * (sigma(model, guide, group).square() / 0.36 - 1)
        torch.testing.assert_close(gradient, expected)
        weight = model.sites.adapters[group.start].linear.weight
        torch.testing.assert_close(weight.grad, 0.3 / 70 * weight.detach() / 0.36)


def test_draws_have_their_moments() -> None:
    model, guide = build(build_bank([6, 6], rank=3), sample_scale=0.2)
    group = model.sites.groups[0]
    draws = torch.stack([guide().columns[0] for _ in range(400)]).detach()
    assert_mean(draws, model.sites.means(group).detach())
    assert_mean((draws - model.sites.means(group).detach()).square(), sigma(model, guide, group).square())


@pytest.mark.parametrize(("init_scale", "start"), [(None, 0.05), (2e-3, 2e-3)])
def test_start(init_scale: float | None, start: float) -> None:
    model = BayesianLoRA(build_network(), bl.MonteCLoRAConfig(**ELBO, sample_scale=0.05))
    guide = MeanFieldGuide(model, init_scale=init_scale)
    for group in model.sites.groups:
        torch.testing.assert_close(guide.deviation(group), torch.full((4, 16, 4), start).double())
    model.set_sample_scale(0.1)
    torch.testing.assert_close(guide.deviation(group), torch.full((4, 16, 4), 2 * start).double())
    assert [name for name, _ in guide.named_parameters()] == ["scale_r4_n16_unconstrained"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_variance_it_is_plain_lora(batch: Batch, dtype: torch.dtype) -> None:
    model, guide = build(build_network(dtype=dtype), init_scale=1e-30)
    noisy = predict(model, guide, [batch], num_samples=3, draws_per_pass=1)
    with torch.no_grad():
        plain = unwrap(model.network)(**batch).logits
    for logits in noisy.logits:
        torch.testing.assert_close(logits, plain, rtol=0, atol=8 * torch.finfo(dtype).eps * float(plain.abs().max()))


def test_the_way_to_plain_lora_is_straight(batch: Batch) -> None:
    """Logits differ from those at the mean in proportion to sigma, where sigma is small."""
    model, guide = build(init_scale=1e-3)
    mean = predict(model, guide, [batch], at_mean=True).logits
    differences = []
    for scale in (1e-4, 1e-5):
        model.set_sample_scale(scale)
        differences.append(predict(model, guide, [batch], num_samples=4).logits - mean)
    torch.testing.assert_close(differences[0], 10 * differences[1], rtol=0.01, atol=1e-2 * float(differences[0].std()))
    assert differences[0].abs().max() > 1e-7


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO(), Trace_ELBO(), ItemizedELBO()], ids=lambda e: type(e).__name__)
def test_svi_trains_mean_and_deviation(batch: Batch, elbo: Any) -> None:
    model, guide = build()
    before = {name: p.detach().clone() for m in (model, guide) for name, p in m.named_parameters()}
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), elbo)
    svi.step(**batch)
    after = {name: p for m in (model, guide) for name, p in m.named_parameters()}
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name, parameter in after.items() if parameter.requires_grad}
    assert any("lora_A" in name for name in moved)
    assert any(name.startswith("scale_") for name in moved)


def test_fit_learns() -> None:
    network = build_network(num_layers=1, target_modules=["query", "value", "dense"])
    model, guide = build(network, num_train_examples=48, kl_temperature=0.01, init_scale=2e-3)
    options = FitOptions(epochs=8, batch_size=8, learning_rate=3e-2, log_every=6)
    history = fit(model, guide, learnable_rows(), options).history
    assert history[-1]["nll"] < history[0]["nll"] / 2
    assert history[-1]["loss"] < history[0]["loss"]


def test_the_trainer_takes_it(tmp_path: Any) -> None:
    model, guide = build(build_network(num_layers=1), num_train_examples=16)
    before = guide.deviation(model.sites.groups[0]).detach().clone()
    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    rows = learnable_rows(16)
    trainer = SVITrainer(model, guide, arguments, train_dataset=rows, eval_dataset=rows[:8], num_samples=2)
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_nll", "eval_point_nll"} <= set(metrics)
    assert not torch.equal(guide.deviation(model.sites.groups[0]), before)


def test_stays_in_full_precision() -> None:
    model, guide = build(build_network(dtype=torch.float32))
    model.to(torch.bfloat16)
    guide.to(torch.bfloat16)
    assert {parameter.dtype for parameter in guide.parameters()} == {torch.float32}
    assert guide().columns[0].dtype == torch.float32


def test_the_model_is_no_part_of_it() -> None:
    model, guide = build()
    assert guide.model is model
    assert len(list(guide.modules())) == 1


def test_errors(batch: Batch) -> None:
    paper = BayesianLoRA(build_network(), bl.MonteCLoRAConfig())
    with pytest.raises(ConfigurationError, match=r"MeanFieldGuide is a posterior over A itself.*objective='elbo'"):
        MeanFieldGuide(paper)
    model, guide = build()
    with pytest.raises(ConfigurationError, match=r"init_scale=0\.0 must be positive and finite .*infinite at 0"):
        MeanFieldGuide(model, init_scale=0.0)
    with pytest.raises(UnsupportedELBOError, match="RenyiELBO is not supported"):
        RenyiELBO(num_particles=2).loss(model, guide, **batch)
