"""Several labels for each row: by hand, by scikit-learn, and how labels depend on each other under draws."""

import math

import pytest
import sklearn.metrics
import torch

from bayes_lora.errors import DataError
from bayes_lora.metrics.multi_label import MultiLabelPrediction


def drawn(num_rows: int = 40, num_samples: int = 5) -> MultiLabelPrediction:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_samples, num_rows, 3, generator=generator, dtype=torch.double)
    labels = (torch.rand(num_rows, 3, generator=generator) < logits.mean(0).sigmoid()).long()
    return MultiLabelPrediction(logits, labels)


def test_densities_by_hand() -> None:
    prediction = drawn()
    assert prediction.labels is not None
    probs = torch.where(prediction.labels == 1, prediction.probs, 1 - prediction.probs)
    torch.testing.assert_close(prediction.log_density, probs.prod(-1).mean(0).log())
    assert prediction.metrics()["nll"] == pytest.approx(-float(probs.prod(-1).mean(0).log().mean()))


def test_entropies_by_hand() -> None:
    prediction = drawn()
    p = prediction.probs
    torch.testing.assert_close(prediction.aleatoric_entropy, (-p * p.log() - (1 - p) * (1 - p).log()).mean(0))
    q = p.mean(0)
    torch.testing.assert_close(prediction.total_entropy, -q * q.log() - (1 - q) * (1 - q).log())
    assert (prediction.mutual_information > 0).all()
    one = MultiLabelPrediction(prediction.logits[:1], None)
    assert one.mutual_information.abs().max() < 1e-14


def test_against_scikit_learn() -> None:
    prediction = drawn()
    labels, probs = prediction.labels, prediction.mean_probs
    assert labels is not None
    predicted, metrics = (probs > 0.5).long(), prediction.metrics()
    assert metrics["accuracy"] == pytest.approx(1 - sklearn.metrics.hamming_loss(labels, predicted))
    assert metrics["subset_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    for average in ("micro", "macro"):
        expected = sklearn.metrics.f1_score(labels, predicted, average=average)
        assert metrics[f"{average}_f1"] == pytest.approx(expected)
    assert metrics["macro_auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, probs, average="macro"))
    assert metrics["brier"] == pytest.approx(float((probs - labels).square().mean()))


def test_labels_that_do_not_vary() -> None:
    prediction = drawn()
    assert prediction.labels is not None
    fixed = prediction.labels.clone()
    fixed[:, 0] = 0
    two = MultiLabelPrediction(prediction.logits[..., 1:], fixed[:, 1:]).metrics()["macro_auroc"]
    assert MultiLabelPrediction(prediction.logits, fixed).metrics()["macro_auroc"] == pytest.approx(two)
    assert math.isnan(MultiLabelPrediction(prediction.logits, torch.zeros_like(fixed)).metrics()["macro_auroc"])
    assert MultiLabelPrediction(prediction.logits - 99, torch.zeros_like(fixed)).metrics()["macro_f1"] == 0


def test_calibrated_probabilities_have_a_small_error() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 20_000, 2, generator=generator, dtype=torch.double)
    labels = (torch.rand(20_000, 2, generator=generator) < logits[0].sigmoid()).long()
    assert MultiLabelPrediction(logits, labels).metrics()["ece"] < 0.015
    assert MultiLabelPrediction(3 * logits, labels).metrics()["ece"] > 0.05


def test_what_has_no_metrics() -> None:
    prediction = drawn()
    with pytest.raises(DataError, match="no labels"):
        MultiLabelPrediction(prediction.logits, None).metrics()
    with pytest.raises(DataError, match="probabilities that are numbers"):
        MultiLabelPrediction(prediction.logits * math.nan, prediction.labels).metrics()
    with pytest.raises(DataError, match="at least one row"):
        MultiLabelPrediction(torch.zeros(1, 0, 2), torch.zeros(0, 2)).metrics()
