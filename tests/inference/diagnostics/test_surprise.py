"""Surprise of tokens: by hand, at its declared rate, and where probabilities are too sharp or too flat."""

import math
from typing import Any

import pytest
import torch
from scipy import stats

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.diagnostics import check_surprise
from bayes_lora.models import CausalLanguageModel

FAILURE_RATE = 1e-4  # of a simulation below, were the test exact


def texts(seed: int, sharpness: float = 1.0, rows: int = 20) -> Any:
    """Tokens drawn from one draw's probabilities; the sharper, the more these are overconfident."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(1, rows, 12, 30, generator=generator).double()
    drawn = torch.multinomial(logits[0].softmax(-1).flatten(0, 1), 1, generator=generator).reshape(rows, 12)
    labels = drawn.roll(1, 1)  # logits are of the token that follows
    labels[:, :3] = -100
    return CausalLanguageModel().prediction(sharpness * logits, labels)


def test_by_hand() -> None:
    """Two tokens with a label, of 1/2 and 1/8."""
    probs = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.25, 0.125, 0.125], [0.25] * 4]).double()
    labels = torch.tensor([[0, 1, 3]])
    found = check_surprise(CausalLanguageModel().prediction(probs.clamp_min(1e-300).log()[None, None], labels))
    assert found.num_tokens == 2
    assert found.observed == pytest.approx((math.log(2) + math.log(8)) / 2)
    assert found.expected == pytest.approx((math.log(2) + 1.75 * math.log(2)) / 2)
    # The first is as surprising as all that could have stood there, and says nothing.
    assert found.standard_error == pytest.approx(1.25 * math.log(2) / 2)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(1))


def test_the_rate_is_the_declared_one() -> None:
    flagged = sum(check_surprise(texts(seed), failure_rate=0.1).flagged for seed in range(300))
    low, high = stats.binom.interval(1 - FAILURE_RATE, 300, 0.1)
    assert low <= flagged <= high


@pytest.mark.parametrize(("sharpness", "words"), [(1.5, "more surprising.*overconfident"), (0.6, "less.*underconf")])
def test_wrong_probabilities_are_flagged(sharpness: float, words: str) -> None:
    for seed in range(5):
        found = check_surprise(texts(seed, sharpness))
        assert found.flagged
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(found.message)
    assert check_surprise(texts(0), failure_rate=1e-6).message.startswith("The tokens are as surprising as predicted")


def test_probabilities_of_0_and_1_surprise_nobody() -> None:
    logits = torch.full((1, 2, 4, 3), -math.inf).double()
    logits[..., 1] = 0
    found = check_surprise(CausalLanguageModel().prediction(logits, torch.ones(2, 4, dtype=torch.long)))
    assert (found.observed, found.expected, found.p_value, found.flagged) == (0.0, 0.0, 1.0, False)


def test_errors() -> None:
    unlabelled = torch.full((1, 3), -100)
    with pytest.raises(DataError, match="no token of the predicted rows has a label"):
        check_surprise(CausalLanguageModel().prediction(torch.zeros(1, 1, 3, 4), unlabelled))
    with pytest.raises(DataError, match="no labels, so no metric"):
        check_surprise(CausalLanguageModel().prediction(torch.zeros(1, 1, 3, 4), None))
    with pytest.raises(ConfigurationError, match="failure_rate=1 must lie between 0 and 1"):
        check_surprise(texts(0), failure_rate=1)
