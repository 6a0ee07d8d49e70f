"""A mixture of predictives: whose draws they are, how many of each, and what they weigh."""

from functools import partial
from typing import Any

import pytest
import torch

from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.inference import Mixture, predict
from bayes_lora.models import CausalLanguageModel, GaussianRegression
from bayes_lora.randomness import stream
from tests.networks import Batch, build_network, build_pair, make_batch


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    batch = make_batch()
    return [{name: value[:3] for name, value in batch.items()}, {name: value[3:] for name, value in batch.items()}]


@pytest.fixture(scope="module")
def members() -> list[Any]:
    return [partial(predict, *build_pair(build_network(seed=seed), sample_scale=1.0)) for seed in range(3)]


@pytest.mark.parametrize(
    ("num_samples", "shares", "block_size"),
    [(12, [4, 4, 4], 4), (6, [2, 2, 2], 2), (8, [3, 3, 2], 1), (2, [1, 1, 0], 1)],
)
def test_each_member_gives_its_share(
    num_samples: int, shares: list[int], block_size: int, members: list[Any], batches: list[Batch]
) -> None:
    mixture = Mixture(members)
    assert mixture.shares(num_samples) == shares
    calls: list[int] = []
    found = mixture(batches, num_samples=num_samples, seed=5, on_batch=lambda: calls.append(1))
    expected = [
        member(batches, num_samples=share, seed=stream(5, index) >> 32)
        for index, (member, share) in enumerate(zip(members, shares, strict=True))
        if share
    ]
    assert torch.equal(found.logits, torch.cat([each.logits for each in expected]))
    mean = sum(len(each.logits) * each.mean_probs for each in expected) / num_samples
    torch.testing.assert_close(found.mean_probs, mean)
    assert torch.equal(found.labels, make_batch()["labels"])
    assert (found.block_size, found.joint, found.kl_temperature, len(calls)) == (block_size, True, None, 2)
    assert not torch.equal(mixture(batches, num_samples=num_samples, seed=6).logits, found.logits)


def test_of_one_member_it_is_that_member(members: list[Any], batches: list[Batch]) -> None:
    alone = members[0](batches, num_samples=4, seed=stream(1, 0) >> 32)
    assert torch.equal(Mixture(members[:1])(batches, num_samples=4, seed=1).logits, alone.logits)


def test_members_do_not_share_their_noise(batches: list[Batch]) -> None:
    pair = build_pair(build_network(), sample_scale=1.0)
    found = Mixture([partial(predict, *pair)] * 2)(batches, num_samples=2, seed=0)
    assert not torch.allclose(found.logits[0], found.logits[1], atol=1e-3)


def test_of_numbers_each_member_keeps_its_noise(batches: list[Batch]) -> None:
    numbers = [batch | {"labels": batch["labels"].double()} for batch in batches]
    kept = []
    for scale in (0.5, 2.0):
        likelihood = GaussianRegression(noise_scale=scale)
        network = build_network()
        network.base_model.model.classifier = torch.nn.Linear(16, 1).double()
        model, guide = build_pair(network, sample_scale=1.0)
        model.likelihood = likelihood
        kept.append(partial(predict, model, guide))
    found = Mixture(kept, GaussianRegression())(numbers, num_samples=2, seed=0)
    apart = [member(numbers, num_samples=1, seed=stream(0, index) >> 32) for index, member in enumerate(kept)]
    packed = [GaussianRegression().pack(each) for each in apart]
    assert torch.equal(GaussianRegression().pack(found), torch.cat(packed))


def test_refusals(members: list[Any], batches: list[Batch]) -> None:
    with pytest.raises(ConfigurationError, match="a mixture needs at least one member"):
        Mixture([])
    with pytest.raises(ConfigurationError, match="num_samples=0"):
        Mixture(members)(batches, num_samples=0)
    with pytest.raises(LikelihoodError, match="CausalLanguageModel have the entropies of their own draws only"):
        Mixture(members, CausalLanguageModel())
