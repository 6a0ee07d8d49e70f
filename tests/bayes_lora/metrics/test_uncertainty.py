"""Detection and selective prediction against slow twins: all pairs of rows, and all orders of tied rows."""

import itertools
import math
from collections.abc import Callable

import pytest
import sklearn.metrics
import torch
from torch import Tensor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import Prediction
from bayes_lora.metrics.uncertainty import (
    area_under_risk_coverage,
    auroc,
    batched_area_under_risk_coverage,
    batched_auroc,
    mean_within_ties,
    out_of_distribution_auroc,
    risk_coverage_curve,
    selective_accuracy,
    uncertainty_scores,
)
from tests.statistics import assert_mean

# Seven rows with a tie of three, of which one is wrong, and a tie of two.
SCORES = torch.tensor([0.2, 0.5, 0.5, 0.1, 0.5, 0.9, 0.9], dtype=torch.double)
WRONG = torch.tensor([False, True, False, False, False, True, True])


def all_orders(scores: Tensor, wrong: Tensor) -> list[list[bool]]:
    """Who is wrong, in every order that goes from certain to uncertain."""
    rows = range(len(scores))
    return [
        [bool(wrong[i]) for i in order]
        for order in itertools.permutations(rows)
        if all(scores[i] <= scores[j] for i, j in itertools.pairwise(order))
    ]


def random_rows(num_examples: int = 60) -> tuple[Tensor, Tensor]:
    """Scores with many ties, and errors that go with them."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 12, (num_examples,), generator=generator).double()
    return scores, torch.rand(num_examples, generator=generator) < scores / 15


def test_auroc_counts_pairs() -> None:
    scores, wrong = random_rows()
    pairs = scores[wrong].unsqueeze(1) - scores[~wrong]
    expected = (pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean()
    assert auroc(scores, wrong) == pytest.approx(expected.item(), rel=1e-12)
    assert auroc(scores, wrong) == pytest.approx(sklearn.metrics.roc_auc_score(wrong, scores), rel=1e-12)
    assert auroc(-scores, wrong) == pytest.approx(1 - expected.item(), rel=1e-12)
    assert 0.6 < expected < 0.95


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([0.3, 0.3, 0.3], [True, False, True], 0.5),  # all tied
        ([0.1, 0.2], [False, True], 1.0),
        ([0.2, 0.1], [False, True], 0.0),
        ([0.1, 0.2], [True, True], math.nan),  # one class only
        ([0.1, 0.2], [False, False], math.nan),
        ([0.1], [True], math.nan),
    ],
)
def test_auroc_at_the_edges(scores: list[float], positive: list[bool], expected: float) -> None:
    assert auroc(torch.tensor(scores), torch.tensor(positive)) == pytest.approx(expected, nan_ok=True)


def test_out_of_distribution() -> None:
    inside, outside = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.4])
    assert out_of_distribution_auroc(inside, outside) == pytest.approx((2.5 + 3) / 6)
    assert out_of_distribution_auroc(outside, inside) == pytest.approx(0.5 / 6)


def test_risk_and_coverage_by_hand() -> None:
    coverage, risk = risk_coverage_curve(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([True, False, True]))
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk.tolist() == pytest.approx([0, 1 / 2, 2 / 3])


def test_ties_are_the_mean_over_all_orders() -> None:
    orders = all_orders(SCORES, WRONG)
    assert len(orders) == 6 * 2
    risks = [[sum(order[:k]) / k for k in range(1, 8)] for order in orders]
    expected = torch.tensor(risks, dtype=torch.double).mean(0)
    _, risk = risk_coverage_curve(SCORES, WRONG)
    torch.testing.assert_close(risk, expected, rtol=1e-12, atol=1e-12)
    assert area_under_risk_coverage(SCORES, WRONG) == pytest.approx(expected.mean().item(), rel=1e-12)
    for kept in range(1, 8):
        assert selective_accuracy(SCORES, WRONG, coverage=kept / 7) == pytest.approx(1 - expected[kept - 1].item())
    # Not all orders give the same, so there was something to average.
    assert len({tuple(row) for row in risks}) > 1


def test_many_sets_of_rows_at_once_are_each_on_its_own() -> None:
    scores, wrong = random_rows()
    rows = torch.randint(len(scores), (6, 20), generator=torch.Generator().manual_seed(1))
    rows[0] = rows[0, 0]  # all rows the same one, for which there is no AUROC
    areas, risks = batched_auroc(scores, wrong, rows), batched_area_under_risk_coverage(scores, wrong, rows)
    for own, area, risk in zip(rows, areas, risks, strict=True):
        pairs = [(up, low) for up in scores[own][wrong[own]] for low in scores[own][~wrong[own]]]
        above = sum(float(up > low) + float(up == low) / 2 for up, low in pairs)
        assert area.item() == pytest.approx(above / len(pairs) if pairs else math.nan, rel=1e-12, nan_ok=True)
        assert area.item() == pytest.approx(auroc(scores[own], wrong[own]), rel=1e-12, nan_ok=True)
        assert risk.item() == pytest.approx(area_under_risk_coverage(scores[own], wrong[own]), rel=1e-12)
    assert areas.isnan().sum() == 1
    assert len(areas.unique()) > 3
    assert len(scores.unique()) < len(scores)  # there are ties


@pytest.mark.parametrize("metric", [area_under_risk_coverage, selective_accuracy, auroc])
def test_nothing_depends_on_the_order_of_the_rows(metric: Callable[[Tensor, Tensor], float]) -> None:
    scores, wrong = random_rows()
    expected = metric(scores, wrong)
    for seed in range(5):
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
        assert metric(scores[order], wrong[order]) == pytest.approx(expected, rel=1e-12)


def test_large_ties_against_random_orders() -> None:
    scores, wrong = random_rows()
    generator = torch.Generator().manual_seed(1)
    draws = []
    for _ in range(2000):
        shuffled = torch.randperm(len(scores), generator=generator)
        order = shuffled[scores[shuffled].argsort(stable=True)]
        draws.append((wrong[order].double().cumsum(0) / torch.arange(1, len(scores) + 1)).mean())
    assert_mean(torch.stack(draws), area_under_risk_coverage(scores, wrong))


def test_scores_that_say_nothing_keep_the_error_rate() -> None:
    _, wrong = random_rows()
    rate = wrong.double().mean().item()
    same = torch.zeros(len(wrong))
    assert area_under_risk_coverage(same, wrong) == pytest.approx(rate)
    assert selective_accuracy(same, wrong) == pytest.approx(1 - rate)
    # The best order has all errors last, and no order does better.
    best = area_under_risk_coverage(wrong.double() + torch.linspace(0, 0.5, len(wrong)), wrong)
    errors = int(wrong.sum())
    assert best == pytest.approx(sum(k / (len(wrong) - errors + k) for k in range(1, errors + 1)) / len(wrong))
    assert best < rate


@pytest.mark.parametrize(("wrong", "area", "accuracy"), [(False, 0.0, 1.0), (True, 1.0, 0.0)])
def test_a_single_row_and_all_alike(wrong: bool, area: float, accuracy: float) -> None:
    for num_rows in (1, 5):
        scores, errors = torch.linspace(0, 1, num_rows), torch.full((num_rows,), wrong)
        assert area_under_risk_coverage(scores, errors) == area
        assert selective_accuracy(scores, errors) == accuracy


@pytest.mark.parametrize(("coverage", "kept"), [(0.7, 7), (0.8, 8), (0.71, 8), (1.0, 10), (0.01, 1)])
def test_coverage_keeps_as_few_rows_as_make_it_up(coverage: float, kept: int) -> None:
    # Error rates of the first k of ten rows all differ, so the accuracy tells k.
    wrong = torch.tensor([False] * 5 + [True] * 5)
    assert selective_accuracy(torch.arange(10.0), wrong, coverage) == pytest.approx(min(1, 5 / kept))


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.1, math.nan])
def test_coverage_out_of_range(coverage: float) -> None:
    with pytest.raises(ConfigurationError, match=r"coverage=.* must lie above 0"):
        selective_accuracy(SCORES, WRONG, coverage)


def test_mean_within_ties() -> None:
    values, keys = torch.tensor([1.0, 2.0, 6.0, 4.0]), torch.tensor([0.5, 0.1, 0.5, 0.5])
    assert mean_within_ties(values, keys).tolist() == pytest.approx([11 / 3, 2, 11 / 3, 11 / 3])


def test_scores_of_a_prediction() -> None:
    prediction = Prediction(torch.randn(4, 20, 3, generator=torch.Generator().manual_seed(0)))
    scores = uncertainty_scores(prediction)
    assert list(scores) == ["entropy", "mutual_information", "max_prob"]
    torch.testing.assert_close(scores["entropy"], prediction.total_entropy)
    torch.testing.assert_close(scores["mutual_information"], prediction.mutual_information)
    torch.testing.assert_close(scores["max_prob"], 1 - prediction.mean_probs.max(-1).values)


def test_very_sure_rows_keep_their_order() -> None:
    # Probabilities of 1 - 4e-18 and 1 - 9e-27 are 1 in double precision.
    scores = uncertainty_scores(Prediction(torch.tensor([[[40.0, 0.0], [60.0, 0.0]]])))["max_prob"]
    assert scores.tolist() == pytest.approx([math.exp(-40), math.exp(-60)], rel=1e-6)


def test_two_classes_have_one_order() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = Prediction(torch.randn(3, 200, 2, generator=generator))
    wrong = torch.rand(200, generator=generator) < 0.3
    scores = uncertainty_scores(prediction)
    for metric in (auroc, area_under_risk_coverage):
        assert metric(scores["entropy"], wrong) == pytest.approx(metric(scores["max_prob"], wrong), rel=1e-12)


def test_equal_draws_have_no_mutual_information() -> None:
    generator = torch.Generator().manual_seed(0)
    one, noise = torch.randn(2, 1, 500, 5, generator=generator)
    prediction = Prediction(one.expand(7, -1, -1))
    # There is something to round off: some rows come out above 0.
    assert 0 < prediction.mutual_information.max() < 1e-14
    assert uncertainty_scores(prediction)["mutual_information"].count_nonzero() == 0
    # What is small but real stays.
    near = uncertainty_scores(Prediction(torch.cat([one, one + 1e-4 * noise])))
    assert near["mutual_information"].count_nonzero() == 500


@pytest.mark.parametrize(
    ("scores", "events"),
    [
        (torch.zeros(0), torch.zeros(0, dtype=torch.bool)),
        (torch.zeros(3), torch.zeros(2, dtype=torch.bool)),
        (torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.bool)),
        (torch.zeros(3), torch.zeros(3)),
    ],
)
@pytest.mark.parametrize("metric", [auroc, risk_coverage_curve, area_under_risk_coverage, selective_accuracy])
def test_errors(metric: Callable[[Tensor, Tensor], object], scores: Tensor, events: Tensor) -> None:
    with pytest.raises(DataError, match=r"needs scores \(example,\) and as many truth values.*uncertainty_scores"):
        metric(scores, events)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_without_an_order_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="the rows have no order"):
        auroc(torch.tensor([0.1, value]), torch.tensor([True, False]))


@pytest.mark.parametrize("logits", [torch.zeros(2, 0, 3), torch.full((2, 1, 3), math.nan)])
def test_predictions_without_scores_are_refused(logits: Tensor) -> None:
    with pytest.raises(DataError, match="uncertainties need at least one row and probabilities that are numbers"):
        uncertainty_scores(Prediction(logits))
