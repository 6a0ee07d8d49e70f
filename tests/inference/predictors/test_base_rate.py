"""The base rate is what counting gives, and says the same of every row."""

import pytest
import torch

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import BaseRate, all_metrics
from bayes_lora.inference.predictors.predictor import Predictor
from tests.networks import Batch


def test_it_is_the_share_of_each_class(batch: Batch) -> None:
    predictor: Predictor = BaseRate(torch.tensor([2, 0, 2, 2, 0]), 4)
    prediction = predictor([batch, batch], num_samples=5, seed=3)
    rows = 2 * len(batch["labels"])
    assert prediction.logits.shape == (1, rows, 4)
    expected = torch.tensor([3, 1, 4, 1], dtype=torch.double) / 9  # with one row more of each class
    torch.testing.assert_close(prediction.mean_probs, expected.expand(rows, -1))
    assert prediction.labels is not None
    assert torch.equal(prediction.labels, batch["labels"].repeat(2))


def test_on_rows_like_those_it_counted_it_is_calibrated_and_finds_no_errors() -> None:
    labels = torch.tensor([0] * 25 + [1] * 75)
    loader = [{"input_ids": torch.zeros(100, 3, dtype=torch.long), "labels": labels}]
    metrics = all_metrics(BaseRate(labels, 2)(loader))
    assert metrics["accuracy"] == 0.75
    assert metrics["ece"] < 0.01
    assert metrics["misclassification_auroc_entropy"] == 0.5
    assert metrics["aurc"] == pytest.approx(0.25)
    # The entropy of the shares, but for the row more of each class.
    assert metrics["nll"] == pytest.approx(0.5623, abs=1e-3)


def test_refused(batch: Batch) -> None:
    with pytest.raises(DataError, match=r"labels run from 0 to 2, but there are 2 classes, 0 to 1\. Correct the"):
        BaseRate(torch.tensor([0, 2]), 2)
    with pytest.raises(ConfigurationError, match="num_classes=0"):
        BaseRate(torch.zeros(0, dtype=torch.long), 0)
    with pytest.raises(DataError, match="there is nothing to predict"):
        BaseRate(torch.tensor([0]), 2)([])
