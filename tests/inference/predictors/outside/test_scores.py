"""Energy, Mahalanobis distance and nearest neighbours, each against its definition, and scikit-learn's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import (
    EnergyScore,
    Ensemble,
    MahalanobisDistance,
    NearestNeighbours,
    PointEstimate,
    TemperatureScaled,
    all_metrics,
    out_of_distribution_auroc,
    trainable_state,
)
from bayes_lora.inference.predictors.outside.hidden_states import hidden_states
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import LikelihoodNetwork, Ordinal
from tests.networks import build_network, learnable_rows, make_batch


def padded(rows: list[dict[str, Any]], size: int = 16) -> list[dict[str, Tensor]]:
    return [
        {name: torch.tensor([row[name] for row in rows[i : i + size]]) for name in rows[0]} for i in range(0, 48, size)
    ]


@pytest.fixture(scope="module")
def trained() -> tuple[PointEstimate, list[dict[str, Tensor]]]:
    """A network, and three batches of 16 rows of three classes."""
    return PointEstimate(build_network(num_layers=1)), padded(learnable_rows())


def drawn(rows: int, seed: int, width: int = 16) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hidden_states_are_what_the_head_reads(trained: tuple[PointEstimate, list[dict[str, Tensor]]]) -> None:
    point, batches = trained
    prediction, states = hidden_states(point, batches)
    network: Any = point.network
    head = network.base_model.model.classifier
    assert states.shape == (48, 16)
    torch.testing.assert_close(head(states), prediction.logits[0], check_dtype=False)
    assert torch.equal(prediction.logits, point(batches).logits)
    assert not head._forward_hooks
    # In an ensemble of one they are those of its member.
    other = {name: value + 0.1 for name, value in trainable_state(point.network).items()}
    assert not torch.allclose(hidden_states(Ensemble(point.network, [other]), batches)[1], states, atol=1e-3)
    assert torch.equal(hidden_states(point, batches)[1], states)


@pytest.mark.parametrize("side", ["left", "right"])
def test_of_a_decoder_they_are_those_of_the_token_it_picks(side: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        num_labels=3,
        pad_token_id=0,
    )
    network = LlamaForSequenceClassification(config).double()
    network = peft.get_peft_model(network, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).eval()
    rows = [list(range(1, 2 + length)) for length in range(5)]
    wide = [([0] * (6 - len(row)) + row if side == "left" else row + [0] * (6 - len(row))) for row in rows]
    ids = torch.tensor(wide)
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    prediction, states = hidden_states(PointEstimate(network), [batch])
    outputs = network(**batch, output_hidden_states=True)
    last = [-1] * 5 if side == "left" else [len(row) - 1 for row in rows]
    expected = outputs.hidden_states[-1][torch.arange(5), last]
    torch.testing.assert_close(states, expected.detach())
    assert torch.equal(prediction.logits[0], outputs.logits)


@pytest.mark.parametrize(("covariance", "estimator"), [("ledoit_wolf", LedoitWolf), ("empirical", EmpiricalCovariance)])
def test_mahalanobis_is_scikit_learns(
    covariance: str, estimator: Callable[..., Any], trained: tuple[PointEstimate, list[dict[str, Tensor]]]
) -> None:
    point, batches = trained
    detector = MahalanobisDistance.fit(point, batches, covariance=covariance)
    states = hidden_states(point, batches)[1].numpy()
    labels = np.array([row["labels"] for row in learnable_rows()])
    means = np.stack([states[labels == label].mean(0) for label in range(3)])
    shared = estimator(assume_centered=True).fit(states - means[labels])
    others = drawn(7, 1)
    expected = np.min([shared.mahalanobis(others.numpy() - mean) for mean in means], axis=0)
    torch.testing.assert_close(detector.distance(others), torch.from_numpy(expected), rtol=1e-7, atol=1e-9)
    found = detector(batches)
    assert found.foreignness is not None
    torch.testing.assert_close(found.foreignness, detector.distance(torch.from_numpy(states)))
    assert torch.equal(found.logits, point(batches).logits)


def test_what_no_training_row_differs_in_counts_nothing() -> None:
    """A singular empirical covariance has its pseudo-inverse."""
    precision = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))
    detector = MahalanobisDistance(PointEstimate(nn.Identity()), torch.zeros(1, 2, dtype=torch.float64), precision)
    states = torch.tensor([[1.0, 0.0], [1.0, 100.0], [3.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(detector.distance(states), torch.tensor([4.0, 4.0, 36.0], dtype=torch.float64))


def test_nearest_neighbours_are_those_of_all_pairs(trained: tuple[PointEstimate, list[dict[str, Tensor]]]) -> None:
    point, batches = trained
    known = hidden_states(point, batches)[1].numpy()
    known = known / np.linalg.norm(known, axis=1, keepdims=True)
    others = drawn(9, 2)
    unit = others.numpy() / np.linalg.norm(others.numpy(), axis=1, keepdims=True)
    pairs = np.sort(np.linalg.norm(unit[:, None] - known[None], axis=-1), axis=1)
    for k in (1, 5, 48):
        detector = NearestNeighbours.fit(point, batches, k=k)
        torch.testing.assert_close(detector.distance(others), torch.from_numpy(pairs[:, k - 1]), rtol=1e-7, atol=1e-7)
        # The size of a hidden state says nothing.
        torch.testing.assert_close(detector.distance(3 * others), detector.distance(others))
    assert NearestNeighbours.fit(point, batches).k == 16  # 48 rows of 3 classes
    assert NearestNeighbours.fit(point, batches * 4).k == 50
    with pytest.raises(ConfigurationError, match="k=49 is more than the 48 training rows"):
        NearestNeighbours.fit(point, batches, k=49)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_energy_is_its_definition(temperature: float) -> None:
    logits = drawn(6, 3, 4).reshape(2, 3, 4)

    def predictor(*_: Any, **__: Any) -> Prediction:
        return Prediction(logits)

    found = EnergyScore(predictor, temperature)([])
    expected = [
        np.mean([-temperature * np.log(np.exp(logits[s, i].numpy() / temperature).sum()) for s in range(2)])
        for i in range(3)
    ]
    assert found.foreignness is not None
    np.testing.assert_allclose(found.foreignness.numpy(), expected, rtol=1e-12)
    # Probabilities do not change with a number added to all logits, and energy does: rows without evidence are foreign.
    assert torch.equal(found.logits, logits)
    logits = logits - 7.0
    shifted = EnergyScore(predictor, temperature)([])
    assert shifted.foreignness is not None
    torch.testing.assert_close(shifted.foreignness, found.foreignness + 7.0)
    torch.testing.assert_close(shifted.mean_probs, found.mean_probs)
    of_probabilities = EnergyScore(TemperatureScaled(predictor, 1.0))([]).foreignness
    assert of_probabilities is not None
    assert of_probabilities.abs().max() < 1e-12
    with pytest.raises(ConfigurationError, match="temperature=0 must be positive"):
        EnergyScore(predictor, 0)


def test_foreign_rows_are_told_by_it_and_a_temperature_keeps_it(
    trained: tuple[PointEstimate, list[dict[str, Tensor]]],
) -> None:
    """A class that was not among the training rows is told by distances, whatever the probabilities say."""
    point, batches = trained
    known, foreign = [
        [{name: value[(batch["labels"] == 2) == outside] for name, value in batch.items()} for batch in batches]
        for outside in (False, True)
    ]
    detector = MahalanobisDistance.fit(point, known)
    inside, outside = detector(known), detector(foreign)
    assert inside.foreignness is not None
    assert outside.foreignness is not None
    found = all_metrics(inside, outside)
    expected = out_of_distribution_auroc(inside.foreignness, outside.foreignness)
    error = ((32 + 16 + 1) / (12 * 32 * 16)) ** 0.5  # of scores that say nothing (Mann and Whitney 1947)
    assert found["ood_auroc"] == found["ood_auroc_foreignness"] == expected > 0.5 + 3 * error
    assert found["ood_auroc_entropy"] != expected
    scaled = TemperatureScaled(detector, 2.0)(known)
    assert torch.equal(scaled.foreignness, inside.foreignness)  # type: ignore[arg-type]


def test_refusals(trained: tuple[PointEstimate, list[dict[str, Tensor]]]) -> None:
    point, batches = trained
    with pytest.raises(ConfigurationError, match=r"outputs of .*query.* are not the network's logits"):
        hidden_states(point, batches, head="bert.encoder.layer.0.attention.self.query.base_layer")
    with pytest.raises(ConfigurationError, match="covariance='dense' is none of 'ledoit_wolf', 'empirical'"):
        MahalanobisDistance.fit(point, batches, covariance="dense")
    state = trainable_state(point.network)
    with pytest.raises(ConfigurationError, match="Ensemble runs classifier 2 times for a batch"):
        hidden_states(Ensemble(point.network, [state, state]), batches)
    unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    for detector in (MahalanobisDistance, NearestNeighbours):
        with pytest.raises(DataError, match="the training rows have no labels"):
            detector.fit(point, unlabelled)
    ordered = LikelihoodNetwork(build_network(num_layers=1), Ordinal(3))
    with pytest.raises(ConfigurationError, match="hidden states of a Ordinal have no classes"):
        hidden_states(PointEstimate(ordered), [make_batch()])
