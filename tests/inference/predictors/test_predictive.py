"""The posterior predictive: the same draws however they are computed, and what is derived from them."""

import copy
import math
from typing import Any

import numpy as np
import peft
import pytest
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from bayes_lora.adapters import unwrap
from bayes_lora.errors import AdapterError, ConfigurationError, DataError
from bayes_lora.inference import MonteCLoRAGuide, Prediction, predict
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import stream
from tests.networks import Batch, build_network, build_pair

Pair = tuple[BayesianLoRA, MonteCLoRAGuide]

CASES: list[dict[str, Any]] = [
    {},
    {"sampler": "explicit", "num_outer_samples": 2},
    {"mixture": "sparse"},
    {"objective": "elbo", "num_train_examples": 20},
]


def noisy_pair(**config: Any) -> Pair:
    network = build_network(target_modules=["query", "value", "output.dense"], rank_pattern={"value": 2})
    return build_pair(network, sample_scale=0.3, **config)


def rows(batch: Batch, *index: int) -> Batch:
    return {name: value[list(index)] for name, value in batch.items()}


@pytest.fixture
def pair() -> Pair:
    return noisy_pair()


def one_by_one(model: BayesianLoRA, guide: Any, batch: Batch, num_samples: int, seed: int) -> Tensor:
    """The obvious way: for every draw, replay the model on the guide's trace, one forward pass each."""
    found = []
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    for draw in range(num_samples):
        torch.manual_seed(stream(seed, draw))
        trace = poutine.trace(guide).get_trace()
        with torch.no_grad():
            replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(**inputs)
        found.append(replayed.nodes["logits"]["value"])
    return torch.stack(found)


@pytest.mark.parametrize("config", CASES, ids=["default", "explicit, two outer draws", "sparse", "elbo"])
@pytest.mark.parametrize("draws_per_pass", [1, 3, None])
def test_draws_are_those_of_one_by_one(batch: Batch, config: dict[str, Any], draws_per_pass: int | None) -> None:
    model, guide = noisy_pair(**config)
    prediction = predict(
        model, guide, [batch], num_samples=7, draws="independent", seed=3, draws_per_pass=draws_per_pass
    )
    assert prediction.logits.shape == (7, 5, 3)
    expected = one_by_one(model, guide, batch, 7, 3)
    torch.testing.assert_close(prediction.logits, expected, rtol=1e-10, atol=1e-12)
    assert expected.std(0).min() > 1e-5


def test_batches_do_not_matter(pair: Pair, batch: Batch) -> None:
    whole = predict(*pair, [batch], num_samples=6)
    parts = predict(*pair, [rows(batch, 0, 1), rows(batch, 2), rows(batch, 3, 4)], num_samples=6)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-10, atol=1e-12)
    assert parts.labels is not None
    assert torch.equal(parts.labels, batch["labels"])


def test_a_single_row_is_not_taken_for_a_draw(pair: Pair, batch: Batch) -> None:
    whole = predict(*pair, [batch], num_samples=4)
    single = predict(*pair, [rows(batch, 2)], num_samples=4)
    torch.testing.assert_close(single.logits, whole.logits[:, 2:3], rtol=1e-10, atol=1e-12)


def test_the_first_sixteen_of_thirty_two(pair: Pair, batch: Batch) -> None:
    few, many = (predict(*pair, [batch], num_samples=n, draws_per_pass=4) for n in (16, 32))
    assert torch.equal(few.logits, many.logits[:16])
    few, many = (predict(*pair, [batch], num_samples=n) for n in (16, 32))
    torch.testing.assert_close(few.logits, many.logits[:16], rtol=1e-10, atol=1e-12)


def test_the_seed_decides(pair: Pair, batch: Batch) -> None:
    torch.manual_seed(1)
    first = predict(*pair, [batch], num_samples=3, seed=5)
    torch.manual_seed(2)
    again, other = (predict(*pair, [batch], num_samples=3, seed=seed) for seed in (5, 6))
    assert torch.equal(first.logits, again.logits)
    # Draws of neighbouring seeds do not overlap either.
    assert not any(torch.allclose(a, b) for a in first.logits for b in other.logits)


def test_the_callers_generator_and_modes_are_left_alone(pair: Pair, batch: Batch) -> None:
    model, guide = pair
    model.train()
    model.network.get_submodule("base_model.model.bert.encoder").eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    predict(model, guide, [batch], num_samples=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes


def test_modes_come_back_after_an_error(pair: Pair, batch: Batch) -> None:
    model, guide = pair
    model.train()
    with pytest.raises(ValueError, match="input_ids"):
        predict(model, guide, [{"attention_mask": batch["attention_mask"]}], num_samples=1)
    assert all(module.training for module in model.modules())


def test_dropout_is_off(batch: Batch) -> None:
    model, guide = build_pair(build_network(dropout=0.5), sample_scale=0.3)
    model.train()
    predictions = [predict(model, guide, [batch], num_samples=2, draws_per_pass=n) for n in (1, 2)]
    torch.testing.assert_close(predictions[0].logits, predictions[1].logits, rtol=1e-10, atol=1e-12)


def test_unlabelled_rows(pair: Pair, batch: Batch) -> None:
    labelled = predict(*pair, [batch], num_samples=2)
    del batch["labels"]
    unlabelled = predict(*pair, [batch], num_samples=2)
    assert unlabelled.labels is None
    assert torch.equal(unlabelled.logits, labelled.logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_at_the_mean_it_is_the_plain_network(batch: Batch, dtype: torch.dtype) -> None:
    model, guide = build_pair(build_network(dtype=dtype), sample_scale=0.3)
    prediction = predict(model, guide, [batch], at_mean=True)
    assert prediction.logits.dtype == torch.promote_types(dtype, torch.float32)
    with torch.no_grad():
        plain = unwrap(model.network)(**batch).logits
    assert torch.equal(prediction.logits[0], plain.to(prediction.logits.dtype))
    assert len(prediction.logits) == 1
    assert prediction.mutual_information.abs().max() < 1e-6


def test_no_noise_is_the_plain_network(batch: Batch) -> None:
    model, guide = build_pair(sample_scale=0.0)
    prediction = predict(model, guide, [batch], num_samples=3, draws_per_pass=1)
    mean = predict(model, guide, [batch], at_mean=True)
    assert all(torch.equal(logits, mean.logits[0]) for logits in prediction.logits)


def test_any_pyro_callable_is_a_guide(pair: Pair, batch: Batch) -> None:
    model, guide = pair

    def prior(*args: Any, **kwargs: Any) -> Any:
        return model.sample_latents()

    prediction = predict(model, prior, [batch], num_samples=2)
    torch.testing.assert_close(prediction.logits, one_by_one(model, prior, batch, 2, 0), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(prediction.logits, predict(model, guide, [batch], num_samples=2).logits)


def test_nothing_is_recorded_by_an_outer_handler(pair: Pair, batch: Batch) -> None:
    with poutine.trace() as recorded:
        predict(*pair, [batch], num_samples=1)
    assert not [node for node in recorded.trace.nodes.values() if node["type"] == "sample"]


def test_progress_is_told_of_every_batch(pair: Pair, batch: Batch) -> None:
    calls: list[int] = []
    predict(*pair, [batch, batch, batch], num_samples=1, on_batch=lambda: calls.append(1))
    assert len(calls) == 3


def test_errors(pair: Pair, batch: Batch) -> None:
    with pytest.raises(ConfigurationError, match="num_samples=0 must be an integer >= 1"):
        predict(*pair, [batch], num_samples=0)
    with pytest.raises(ConfigurationError, match="draws_per_pass=0 must be an integer >= 1"):
        predict(*pair, [batch], draws_per_pass=0)
    with pytest.raises(DataError, match="the loader has no batches"):
        predict(*pair, [])
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    with pytest.raises(DataError, match="some batches have labels and some do not"):
        predict(*pair, [batch, unlabelled], num_samples=1)


class Swapped(torch.nn.Module):
    """A network whose adapter sees tokens as rows: draws stacked along the rows cannot be told apart there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1),)


class TimeFirst(torch.nn.Module):
    """A network whose adapter sees as many tokens as there are stacked rows, so that their number tells nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x.transpose(0, 1)).mean(0),)


@pytest.mark.parametrize(("network", "tokens"), [(Swapped(), 5), (TimeFirst(), 8), (TimeFirst(), 12)])
def test_a_network_that_mixes_rows_runs_its_draws_singly(network: torch.nn.Module, tokens: int) -> None:
    wrapped = peft.get_peft_model(copy.deepcopy(network), peft.LoraConfig(r=2, target_modules=["layer"]))
    torch.nn.init.normal_(wrapped.get_parameter("base_model.model.layer.lora_B.default.weight"))
    model, guide = build_pair(wrapped, sample_scale=0.5)
    loader = [{"x": torch.randn(4, tokens, 6)}]
    singly = predict(model, guide, loader, num_samples=3, draws_per_pass=1)
    assert torch.equal(predict(model, guide, loader, num_samples=3).logits, singly.logits)
    assert not torch.allclose(singly.logits[0], singly.logits[1])
    if tokens == 5:
        with pytest.raises(AdapterError, match=r"^layer: its input has 60 rows .* 12, .*draws_per_pass=1"):
            predict(model, guide, loader, num_samples=3, draws_per_pass=3)


def test_whether_draws_can_share_a_pass_is_tried_once_and_where_it_matters() -> None:
    wrapped = peft.get_peft_model(TimeFirst(), peft.LoraConfig(r=2, target_modules=["layer"]))
    torch.nn.init.normal_(wrapped.get_parameter("base_model.model.layer.lora_B.default.weight"))
    model, guide = build_pair(wrapped, sample_scale=0.5)
    passes: list[int] = []
    wrapped.base_model.model.register_forward_hook(lambda *_: passes.append(1))

    def counted(*tokens: int) -> int:
        passes.clear()
        predict(model, guide, [{"x": torch.randn(4, count, 6)} for count in tokens], num_samples=3)
        return len(passes)

    assert counted(300, 300) == 6  # 1200 tokens: there is no room for two draws
    assert counted(300, 8, 8) == 9 + 2  # a pass of two draws, and one of the rows alone


def test_small_mutual_information_is_not_rounding_noise() -> None:
    logits = torch.randn(1, 20, 3, dtype=torch.double) + 1e-4 * torch.randn(32, 20, 3, dtype=torch.double)
    exact, rounded = Prediction(logits).mutual_information, Prediction(logits.float()).mutual_information
    assert exact.max() < 1e-7
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=1e-12)


def test_the_log_of_the_mean_is_finite_where_the_mean_underflows() -> None:
    prediction = Prediction(torch.tensor([[[0.0, 2000.0]], [[0.0, 1000.0]]]))
    assert prediction.mean_probs[0, 0] == 0
    assert prediction.log_mean_probs[0, 0].item() == pytest.approx(-1000 - math.log(2))
    ordinary = random_prediction()
    torch.testing.assert_close(ordinary.log_mean_probs, ordinary.mean_probs.log())


def test_a_guide_of_another_model_is_refused(pair: Pair, batch: Batch) -> None:
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        predict(pair[0], noisy_pair()[1], [batch])
    with pytest.raises(ConfigurationError, match=r"seed=-1 must be an integer from 0 to 2\^32 - 1"):
        predict(*pair, [batch], seed=-1)


def random_prediction(num_samples: int = 6) -> Prediction:
    generator = torch.Generator().manual_seed(0)
    return Prediction(3 * torch.randn(num_samples, 8, 4, generator=generator, dtype=torch.double))


def test_entropies_are_scipys() -> None:
    prediction = random_prediction()
    probs = np.exp(scipy.special.log_softmax(prediction.logits.numpy(), axis=-1))
    np.testing.assert_allclose(prediction.probs, probs, rtol=1e-12)
    np.testing.assert_allclose(prediction.mean_probs, probs.mean(0), rtol=1e-12)
    total = scipy.stats.entropy(probs.mean(0), axis=-1)
    aleatoric = scipy.stats.entropy(probs, axis=-1).mean(0)
    np.testing.assert_allclose(prediction.total_entropy, total, rtol=1e-12)
    np.testing.assert_allclose(prediction.aleatoric_entropy, aleatoric, rtol=1e-12)
    np.testing.assert_allclose(prediction.mutual_information, total - aleatoric, rtol=1e-9)
    # Twin: the mean divergence of each draw from the predictive.
    divergence = scipy.special.rel_entr(probs, probs.mean(0)).sum(-1).mean(0)
    np.testing.assert_allclose(prediction.mutual_information, divergence, rtol=1e-9)
    assert (prediction.mutual_information > 0).all()


def test_entropies_at_the_extremes() -> None:
    certain = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
    disagreeing = Prediction(certain)
    assert disagreeing.aleatoric_entropy.item() == 0
    assert disagreeing.total_entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    assert disagreeing.mutual_information.item() == pytest.approx(math.log(2), rel=1e-6)
    agreeing = Prediction(random_prediction(1).logits.expand(5, -1, -1).float())
    assert (agreeing.mutual_information >= 0).all()
    assert agreeing.mutual_information.max() < 1e-6


def test_a_conditioned_guide_keeps_what_it_was_conditioned_on(batch: Batch) -> None:
    model, guide = build_pair(sample_scale=0.4)
    fixed = poutine.trace(guide).get_trace().nodes["S_r4_n16"]["value"].detach()
    weights = torch.full((len(model.sites.adapters), 4), 0.25, dtype=torch.double)
    conditioned = poutine.condition(guide, data={"S_r4_n16": fixed, "pi": weights})
    prediction = predict(model, conditioned, [batch], num_samples=3)
    assert torch.equal(prediction.logits[0], prediction.logits[1])
    with torch.no_grad(), model.perturbed([0.4 * 0.5 * fixed.mT]):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        torch.testing.assert_close(prediction.logits[2], model.network_logits(inputs))
