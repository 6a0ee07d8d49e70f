"""Draws by design: each is a draw of the posterior, and the noise of a block sums to nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal
from scipy.stats import ks_2samp
from torch import Tensor

from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import LoRAGuide, MeanFieldGuide, MonteCLoRAGuide, autoguide, predict
from bayes_lora.inference.guides.draw_design import Source, block_size, choose_design, designed_noises, source
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents
from bayes_lora.randomness import stream
from tests.networks import Batch, build_network, build_pair

Pair = tuple[BayesianLoRA, Any]

FAILURE_RATE = 1e-4  # of the goodness of fit of a right design, over all its tests


def monteclora(**config: Any) -> Pair:
    network = build_network(target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    return build_pair(network, sample_scale=0.3, **config)


def elbo_model() -> BayesianLoRA:
    return monteclora(objective="elbo", num_train_examples=20)[0]


def mean_field() -> Pair:
    model = elbo_model()
    return model, MeanFieldGuide(model)


def auto(factory: Callable[..., Any], **options: Any) -> Pair:
    """Centred elsewhere than at LoRA-A."""
    model = elbo_model()
    guide = autoguide(model, factory, init_scale=0.2, **options)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model, guide


PAIRS: dict[str, Callable[[], Pair]] = {
    "paper": monteclora,
    "explicit, two outer draws": lambda: monteclora(sampler="explicit", num_outer_samples=2),
    "sparse": lambda: monteclora(mixture="sparse", sampler="explicit"),
    "elbo": lambda: monteclora(objective="elbo", num_train_examples=20),
    "mean field": mean_field,
    "AutoNormal": lambda: auto(AutoNormal),
    "AutoDiagonalNormal": lambda: auto(AutoDiagonalNormal),
    "low rank": lambda: auto(AutoLowRankMultivariateNormal, rank=2),
}


DESIGNS: tuple[Draws, ...] = ("tetrahedral", "antithetic")


def noises(pair: Pair, design: Draws, seed: int, *indices: int) -> list[list[Tensor]]:
    return list(designed_noises(*pair, design, seed, indices))


def one_by_one(pair: Pair, batch: Batch, design: Draws, num_samples: int, seed: int) -> Tensor:
    """The obvious way: for every draw, the model replayed on a trace of the guide whose columns are combinations, about
    their centre, of those of traces that have pi and Sigma in common."""
    model, guide = pair
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.double) / 3**0.5
    if design == "tetrahedral":  # turned so that the first corner is the first direction, and the second in a plane
        corners, upper = (corners @ torch.linalg.qr(corners.T)[0]), torch.linalg.qr(corners.T)[1]
        corners = corners * upper.diagonal().sign() * torch.tensor([1, 1, 1])
    else:
        corners = torch.tensor([[1.0], [-1.0]], dtype=torch.double)
    size, num_directions = corners.shape
    centre = {}
    for group in model.sites.groups:
        site = model.sites.column_site(group)
        if model.config.objective == "paper":
            centre[site] = torch.zeros(())
        else:
            centre[site] = guide.median()[site] if hasattr(guide, "median") else model.sites.means(group)
    found = []
    for draw in range(num_samples):
        block, corner = draw - draw % size, corners[draw % size]
        torch.manual_seed(stream(seed, block))
        trace = poutine.trace(guide).get_trace()
        shaping = {site: trace.nodes[site]["value"] for site in model.sites.shaping_sites}
        columns = {site: corner[0] * (trace.nodes[site]["value"] - centre[site]) for site in centre}
        for direction in range(1, num_directions):
            torch.manual_seed(stream(seed, block + direction))
            other = poutine.trace(poutine.condition(guide, data=shaping)).get_trace()
            for site in centre:
                columns[site] = columns[site] + corner[direction] * (other.nodes[site]["value"] - centre[site])
        for site, middle in centre.items():
            trace.nodes[site]["value"] = middle + columns[site]
        with torch.no_grad():
            replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(**inputs)
        found.append(replayed.nodes["logits"]["value"])
    return torch.stack(found)


def test_where_the_draws_of_a_block_come_from() -> None:
    assert [source("antithetic", index) for index in range(4)] == [
        Source(0, (1.0,)),
        Source(0, (-1.0,)),
        Source(2, (1.0,)),
        Source(2, (-1.0,)),
    ]
    assert [source("independent", index) for index in range(3)] == [Source(index, (1.0,)) for index in range(3)]
    four = [source("tetrahedral", index) for index in range(4, 8)]
    assert {of.block for of in four} == {4}
    corners = torch.tensor([[*of.weights, 0.0, 0.0][:3] for of in four], dtype=torch.double)
    # Unit variance alone, and as far apart as four can be: covariance -1/3 in every pair of them.
    torch.testing.assert_close(corners @ corners.T, (4 * torch.eye(4, dtype=torch.double) - 1) / 3)


def test_the_design_is_what_serves_best() -> None:
    assert [choose_design(None, number) for number in (1, 2, 3, 4, 6, 8)] == [
        *("antithetic", "antithetic", "antithetic", "tetrahedral", "antithetic", "tetrahedral")
    ]
    assert choose_design(None, "auto") == "antithetic"  # which begins with two
    assert [choose_design(None, number, fewest_blocks=2) for number in (4, 8)] == ["antithetic", "tetrahedral"]
    assert choose_design(None, 8, designs=("antithetic", "independent")) == "antithetic"
    assert choose_design(None, 8, designs=("independent",)) == "independent"
    assert choose_design("independent", 8) == "independent"


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("build", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("draws_per_pass", [1, 3, None])
def test_draws_are_those_of_one_by_one(
    build: Callable[[], Pair], batch: Batch, draws_per_pass: int | None, design: Draws
) -> None:
    pair = build()
    found = predict(*pair, [batch], num_samples=7, draws=design, seed=3, draws_per_pass=draws_per_pass)
    torch.testing.assert_close(found.logits, one_by_one(pair, batch, design, 7, 3), rtol=1e-9, atol=1e-11)
    assert found.block_size == block_size(design)
    assert found.logits.std(0).min() > 1e-5


@pytest.mark.parametrize("build", PAIRS.values(), ids=PAIRS.keys())
def test_first_draws_are_independent_ones_and_fewer_are_the_first_of_many(
    build: Callable[[], Pair], batch: Batch
) -> None:
    pair = build()
    few, many = (predict(*pair, [batch], num_samples=number, draws_per_pass=1) for number in (8, 16))
    independent = predict(*pair, [batch], num_samples=16, draws="independent", draws_per_pass=1)
    assert torch.equal(few.logits, many.logits[:8])
    assert torch.equal(many.logits[::4], independent.logits[::4])
    pairs = predict(*pair, [batch], num_samples=6, draws_per_pass=1)
    assert torch.equal(pairs.logits[::2], independent.logits[:6:2])
    assert (many.block_size, pairs.block_size, independent.block_size) == (4, 2, 1)


@pytest.mark.parametrize("name", ["paper", "explicit, two outer draws", "sparse", "elbo", "mean field"])
def test_the_covariance_across_a_pair_is_minus_the_noises(name: str) -> None:
    for first, second in (noises(PAIRS[name](), "antithetic", 0, index, index + 1) for index in (0, 2, 4)):
        assert all(torch.equal(one, -other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", PAIRS)
def test_a_block_is_centred(name: str, design: Draws) -> None:
    """At the guide's own centre, which an autoguide has elsewhere than at LoRA-A."""
    model, guide = pair = PAIRS[name]()
    block = noises(pair, design, 0, *range(block_size(design)))
    for group, *of_group in zip(model.sites.groups, *block, strict=True):
        centre = torch.zeros_like(of_group[0])
        if hasattr(guide, "median"):
            centre = (guide.median()[model.sites.column_site(group)] - model.sites.means(group)).mT
            assert not torch.allclose(centre, torch.zeros_like(centre))
        torch.testing.assert_close(sum(of_group) / len(of_group), centre, rtol=1e-9, atol=1e-12)


def _statistics(noise: list[Tensor]) -> list[float]:
    """Of each group's noise: three entries, its norm, its largest entry, and its product with a fixed matrix."""
    found = []
    for group in noise:
        direction = torch.randn(group.shape, generator=torch.Generator().manual_seed(0), dtype=group.dtype)
        values = [*group.flatten()[:3], group.norm(), group.max(), (group * direction).sum()]
        found += [float(value) for value in values]
    return found


def _misfit(
    pair: Pair, design: Draws, position: int, spoil: Callable[[Tensor], Tensor] = lambda noise: noise, num: int = 400
) -> float:
    """The least p-value of the draws at a position of blocks having the distribution of independent ones, times that
    of tests."""
    designed = [[spoil(group) for group in noises(pair, design, seed, position)[0]] for seed in range(num)]
    plain = [noises(pair, "independent", seed + num, 0)[0] for seed in range(num)]
    columns = zip(*(torch.tensor(list(map(_statistics, of))).T for of in (designed, plain)), strict=True)
    values = [ks_2samp(one, other).pvalue for one, other in columns]
    return float(min(values)) * len(values)


POSITIONS: list[tuple[Draws, int]] = [("antithetic", 1), ("tetrahedral", 1), ("tetrahedral", 3)]


@pytest.mark.parametrize(("design", "position"), POSITIONS)
@pytest.mark.parametrize("build", PAIRS.values(), ids=PAIRS.keys())
def test_draws_of_a_block_have_the_distribution_of_independent_ones(
    build: Callable[[], Pair], design: Draws, position: int
) -> None:
    assert _misfit(build(), design, position) > FAILURE_RATE / (len(POSITIONS) * len(PAIRS))


@pytest.mark.parametrize(("design", "position"), POSITIONS)
@pytest.mark.parametrize("name", ["paper", "elbo", "mean field", "low rank"])
def test_a_biased_design_is_found_out(name: str, design: Draws, position: int) -> None:
    pair = PAIRS[name]()
    for spoil in (lambda noise: 0.7 * noise, torch.abs):
        assert _misfit(pair, design, position, spoil) < FAILURE_RATE / (len(POSITIONS) * len(PAIRS))


def test_what_does_not_name_a_design_has_independent_draws(batch: Batch) -> None:
    model, guide = monteclora()
    plain = predict(model, guide, [batch], num_samples=4, draws="independent")
    wrapped = predict(model, lambda *args, **kwargs: guide(*args, **kwargs), [batch], num_samples=4)
    assert torch.equal(wrapped.logits, plain.logits)
    assert wrapped.block_size == 1
    for design, shape in (("antithetic", "symmetric"), ("tetrahedral", "Gaussian")):
        with pytest.raises(
            ConfigurationError, match=rf"draws='{design}' combines .* {shape}\. Use draws='independent'"
        ):
            predict(model, lambda: guide(), [batch], num_samples=4, draws=design)  # type: ignore[arg-type]
    assert LoRAGuide(model).designs == ("independent",)


def test_words_that_are_no_draws_are_refused(batch: Batch) -> None:
    model, guide = monteclora()
    with pytest.raises(ConfigurationError, match="draws='sobol' is none of 'tetrahedral', 'antithetic', 'independent'"):
        predict(model, guide, [batch], draws="sobol")  # type: ignore[arg-type]


def test_a_block_is_worth_many_independent_draws(batch: Batch) -> None:
    """Noise of the usual size: 2 designed draws against 32 independent ones, 4 by two designs; errors over seeds."""
    model, guide = monteclora(objective="elbo", num_train_examples=20)
    model.set_sample_scale(0.02)
    truth = predict(model, guide, [batch], num_samples=4000, draws="independent", seed=99).mean_probs

    def error(num_samples: int, draws: Draws) -> float:
        found = [predict(model, guide, [batch], num_samples=num_samples, draws=draws, seed=s) for s in range(40)]
        return float(torch.stack([p.mean_probs - truth for p in found]).square().mean().sqrt())

    assert error(2, "antithetic") < error(32, "independent")
    assert error(4, "tetrahedral") < error(4, "antithetic")


@pytest.mark.parametrize(("design", "calls"), [("tetrahedral", 6), ("antithetic", 4), ("independent", 8)])
def test_the_guide_is_asked_once_for_a_direction(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, design: Draws, calls: int
) -> None:
    model, guide = monteclora()
    seen = []
    sample = MonteCLoRAGuide.sample

    def counted(self: MonteCLoRAGuide) -> Latents:
        seen.append(1)
        return sample(self)

    monkeypatch.setattr(MonteCLoRAGuide, "sample", counted)
    predict(model, guide, [batch], num_samples=8, draws=design, draws_per_pass=3)
    assert len(seen) == calls
