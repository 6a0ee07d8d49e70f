"""Standard errors over the choice of draws: right for independent draws, for pairs, and for a single pair."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bayes_lora.choices import Draws
from bayes_lora.inference.guides.draw_design import source
from bayes_lora.metrics.monte_carlo_error import independent_parts, monte_carlo_error
from bayes_lora.metrics.prediction import Prediction

NUM_ROWS, NUM_CLASSES, NUM_NOISES = 6, 3, 5
GENERATOR = torch.Generator().manual_seed(0)
CENTRE = torch.randn(NUM_ROWS, NUM_CLASSES, generator=GENERATOR, dtype=torch.double)
LINEAR = torch.randn(NUM_NOISES, NUM_ROWS, NUM_CLASSES, generator=GENERATOR, dtype=torch.double)
QUADRATIC = 0.1 * torch.randn(NUM_NOISES, NUM_ROWS, NUM_CLASSES, generator=GENERATOR, dtype=torch.double)


def logits_of(noise: Tensor) -> Tensor:
    """Of noise (sample, number): nearly linear in it, (sample, example, class)."""
    return CENTRE + torch.einsum("sk,knc->snc", noise, 0.4 * LINEAR) + torch.einsum("sk,knc->snc", noise**2, QUADRATIC)


def drawn(num_samples: int, seed: int, size: int) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_samples + 2, NUM_NOISES, generator=generator, dtype=torch.double)
    design: Draws = {1: "independent", 2: "antithetic", 4: "tetrahedral"}[size]  # type: ignore[assignment]
    sources = [source(design, draw) for draw in range(num_samples)]
    rows = [sum(w * noise[of.block + index] for index, w in enumerate(of.weights)) for of in sources]
    return Prediction(logits_of(torch.stack(rows)), block_size=size)  # type: ignore[arg-type]


QUANTITIES: dict[str, Callable[[Prediction], Tensor]] = {
    "mean_probs": lambda of: of.mean_probs,
    "total_entropy": lambda of: of.total_entropy,
    "aleatoric_entropy": lambda of: of.aleatoric_entropy,
    "mutual_information": lambda of: of.mutual_information,
}


@pytest.mark.parametrize("size", [1, 2, 4], ids=["independent", "pairs", "by four"])
@pytest.mark.parametrize("name", QUANTITIES)
def test_the_error_is_how_far_predictions_of_other_seeds_are(name: str, size: int) -> None:
    """Over 400 seeds of 32 draws: the mean variance is the variance of what it is of."""
    found = [drawn(32, seed, size) for seed in range(400)]
    spread = torch.stack([QUANTITIES[name](prediction) for prediction in found]).var(0)
    stated = torch.stack([getattr(monte_carlo_error(prediction), name) for prediction in found]).square().mean(0)
    # A variance from 400 values of about normal distribution is known to within 7 %: four standard errors are 28 %.
    assert ((stated / spread).log().abs() < 0.3).all(), stated / spread


def test_pairs_taken_for_independent_draws_give_another_error() -> None:
    found = [drawn(32, seed, 2) for seed in range(400)]
    spread = torch.stack([prediction.mean_probs for prediction in found]).var(0)
    wrong = [monte_carlo_error(replace(prediction, block_size=1)).mean_probs for prediction in found]
    assert (torch.stack(wrong).square().mean(0) / spread).median() > 2


def test_of_the_mean_it_is_the_deviation_by_the_root_of_the_number() -> None:
    prediction = drawn(6, 0, 2)
    means = prediction.probs.reshape(3, 2, NUM_ROWS, NUM_CLASSES).mean(1)
    torch.testing.assert_close(monte_carlo_error(prediction).mean_probs, means.std(0) / 3**0.5)


def test_what_one_draw_or_one_block_does_not_tell_is_nan() -> None:
    for prediction in (drawn(1, 0, 1), drawn(2, 0, 2), drawn(3, 0, 2), drawn(4, 0, 4)):
        assert monte_carlo_error(prediction).mean_probs.isnan().all()
        assert monte_carlo_error(prediction).mutual_information.isnan().all()


@pytest.mark.parametrize("size", [2, 4])
def test_one_block_beside_the_mean_is_not_much_too_sure(size: int) -> None:
    """Its stated variance, averaged over seeds, is at least the true one, and within a factor of 20 of it."""
    at_mean = logits_of(torch.zeros(1, NUM_NOISES, dtype=torch.double))[0]
    found = [replace(drawn(size, seed, size), at_mean=at_mean) for seed in range(1000)]
    for name, quantity in QUANTITIES.items():
        spread = torch.stack([quantity(prediction) for prediction in found]).var(0)
        stated = torch.stack([getattr(monte_carlo_error(of), name) for of in found]).square().mean(0)
        assert ((stated / spread) > 0.8).all(), name
        assert ((stated / spread) < 20).all(), name


def test_rows_with_draws_of_their_own_number() -> None:
    """Each row's error is that of a prediction with its number of draws."""
    many, few = drawn(8, 0, 2), drawn(8, 0, 2)
    mixed = many.logits.clone()
    mixed[:, :2] = few.logits[:4, :2].repeat(2, 1, 1)
    num_draws = torch.tensor([4, 4, 8, 8, 8, 8])
    found = monte_carlo_error(Prediction(mixed, block_size=2, num_draws=num_draws))
    torch.testing.assert_close(found.mean_probs[2:], monte_carlo_error(many).mean_probs[2:])
    four = Prediction(few.logits[:4], block_size=2)
    torch.testing.assert_close(found.mean_probs[:2], monte_carlo_error(four).mean_probs[:2])
    torch.testing.assert_close(found.mutual_information[:2], monte_carlo_error(four).mutual_information[:2])


def test_independent_parts() -> None:
    values = torch.arange(5.0)
    assert independent_parts(values, 1) is values
    assert independent_parts(values, 2).tolist() == [0.5, 2.5]
    assert independent_parts(values, 4).tolist() == [1.5]
    assert independent_parts(values, 8).tolist() == []
