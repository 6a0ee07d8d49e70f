"""A class for each token, but for those that have none."""

import torch
from torch.nn.functional import cross_entropy

from bayes_lora.distributions.token_categorical import TokenCategorical

LOGITS = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
LABELS = torch.tensor([[0, 3, -100, 1, -100], [-100] * 5, [2, 2, 0, 1, 3]])


def test_it_is_the_sum_of_cross_entropies_over_labelled_tokens() -> None:
    found = TokenCategorical(LOGITS).log_prob(LABELS)
    assert found.shape == (2, 3)
    for draw in range(2):
        for row in range(3):
            loss = cross_entropy(LOGITS[draw, row], LABELS[row], reduction="sum")
            torch.testing.assert_close(found[draw, row], -loss)
    assert (found[:, 1] == 0).all()


def test_tokens_without_a_label_have_no_gradient() -> None:
    logits = LOGITS[0].clone().requires_grad_()
    TokenCategorical(logits).log_prob(LABELS).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[LABELS == -100] == 0).all()
    assert (logits.grad[LABELS != -100] != 0).any(-1).all()


def test_shapes() -> None:
    fn = TokenCategorical(LOGITS)
    assert (fn.batch_shape, fn.event_shape) == ((2, 3), (5,))
    assert fn.sample().shape == (2, 3, 5)
    assert fn.sample((7,)).shape == (7, 2, 3, 5)
    assert fn.expand((2, 3)) is fn
    assert fn.expand((6, 2, 3)).log_prob(LABELS).shape == (6, 2, 3)
