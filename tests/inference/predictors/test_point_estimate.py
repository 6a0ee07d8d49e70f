"""The point estimate is the network's own forward pass, and nothing else happens to the network."""

import pytest
import torch

from bayes_lora.errors import DataError, LikelihoodError
from bayes_lora.inference import predict
from bayes_lora.inference.predictors.point_estimate import PointEstimate
from bayes_lora.inference.predictors.predictor import Predictor
from tests.networks import Batch, build_bert, build_network, build_pair


@pytest.mark.parametrize("lora", [True, False])
def test_it_is_the_network_in_evaluation_mode(batch: Batch, lora: bool) -> None:
    network = build_network(dropout=0.5, lora_dropout=0.5) if lora else build_bert(dropout=0.5)
    with torch.no_grad():
        expected = network.eval()(**batch).logits
    network.train()
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    predictor: Predictor = PointEstimate(network)
    prediction = predictor([batch], num_samples=4, seed=3)
    assert torch.equal(prediction.logits, expected.unsqueeze(0))
    assert prediction.labels is not None
    assert torch.equal(prediction.labels, batch["labels"])
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert not torch.equal(network(**batch).logits, expected)  # dropout would have been seen


def test_batches_do_not_matter(batch: Batch) -> None:
    seen = []
    predictor = PointEstimate(build_network())
    parts = [{name: value[start : start + 2] for name, value in batch.items()} for start in (0, 2, 4)]
    found = predictor(parts, on_batch=lambda: seen.append(1))
    torch.testing.assert_close(found.logits, predictor([batch]).logits, rtol=1e-12, atol=1e-12)
    assert len(seen) == 3


def test_inside_a_bayesian_lora_it_is_the_mean(batch: Batch) -> None:
    model, guide = build_pair(sample_scale=0.3)
    predict(model, guide, [batch], num_samples=2)
    found = PointEstimate(model.network)([batch])
    assert torch.equal(found.logits, predict(model, guide, [batch], at_mean=True).logits)
    assert not torch.allclose(found.logits, predict(model, guide, [batch], num_samples=1).logits)


def test_refused(batch: Batch) -> None:
    with pytest.raises(DataError, match="there is nothing to predict"):
        PointEstimate(build_network())([])
    with pytest.raises(LikelihoodError, match="without logits"):
        PointEstimate(build_bert().bert)([batch])
