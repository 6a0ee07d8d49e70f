"""num_samples="auto": as many draws as the standard error of a batch's probabilities asks for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.inference import MonteCLoRAGuide, SVITrainer, predict
from bayes_lora.inference.diagnostics import enough_draws
from bayes_lora.inference.predictors.posterior_passes import PosteriorPasses
from bayes_lora.metrics.monte_carlo_error import monte_carlo_error
from bayes_lora.models import BayesianLoRA, GaussianRegression, Likelihood
from tests.networks import Batch, build_network, build_pair, learnable_rows

Pair = tuple[BayesianLoRA, MonteCLoRAGuide]


def noisy(scale: float, **config: Any) -> Pair:
    network = build_network(target_modules=["query", "value", "output.dense"])
    with torch.no_grad():  # else the classes would hardly differ, whatever the noise
        network.get_submodule("base_model.model.classifier.modules_to_save.default").weight.mul_(50)
    return build_pair(network, sample_scale=scale, objective="elbo", num_train_examples=20, **config)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 0.3, 3.0])
def test_it_stops_at_the_first_number_that_is_enough(scale: float, batch: Batch) -> None:
    pair = noisy(scale)
    found = predict(*pair, [batch], num_samples="auto", tolerance=0.01)
    assert found.num_draws is not None
    taken = int(found.num_draws[0])
    assert (found.num_draws == taken).all()
    assert found.joint

    def largest(number: int) -> float:
        fixed = predict(*pair, [batch], num_samples=number, draws="antithetic")
        return float(monte_carlo_error(replace(fixed, at_mean=found.at_mean)).mean_probs.max())

    torch.testing.assert_close(found.logits, predict(*pair, [batch], num_samples=taken, draws="antithetic").logits)
    assert all(largest(number) > 0.01 for number in (2, 4, 8, 16, 32) if number < taken)
    assert taken == 64 or largest(taken) <= 0.01


def test_it_goes_by_four_where_asked_to(batch: Batch) -> None:
    pair = noisy(0.01)
    found = predict(*pair, [batch], num_samples="auto", draws="tetrahedral", tolerance=0.02)
    assert found.num_draws is not None
    assert found.num_draws.tolist() == [4] * 5
    assert found.block_size == 4
    torch.testing.assert_close(found.logits, predict(*pair, [batch], num_samples=4).logits)


def test_little_noise_takes_one_pair_and_much_noise_many(batch: Batch) -> None:
    counts = [predict(*noisy(scale), [batch], num_samples="auto").num_draws for scale in (1e-4, 3.0)]
    assert [int(count.max()) for count in counts if count is not None] == [2, 64]


def test_batches_take_as_many_as_each_needs(batch: Batch) -> None:
    """A row with fewer draws has them again and again, so that its means are those of its own draws."""
    pair = noisy(0.15)
    parts = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(5)]
    alone = [predict(*pair, [part], num_samples="auto", tolerance=0.004) for part in parts]
    together = predict(*pair, parts, num_samples="auto", tolerance=0.004)
    assert together.num_draws is not None
    counts = [int(one.num_draws[0]) for one in alone if one.num_draws is not None]
    assert together.num_draws.tolist() == counts
    assert len(set(counts)) > 1
    assert not together.joint
    for name in ("mean_probs", "total_entropy", "aleatoric_entropy", "mutual_information"):
        expected = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), expected)
    expected = torch.cat([monte_carlo_error(one).mean_probs for one in alone])
    torch.testing.assert_close(monte_carlo_error(together).mean_probs, expected)


def test_the_mean_comes_with_it(batch: Batch) -> None:
    pair = noisy(0.1)
    found = predict(*pair, [batch], num_samples="auto")
    assert found.at_mean is not None
    torch.testing.assert_close(found.at_mean, predict(*pair, [batch], at_mean=True).logits[0])


def test_independent_draws_are_counted_as_such(batch: Batch) -> None:
    pair = noisy(0.1)
    designed, plain = (
        predict(*pair, [batch], num_samples="auto", draws=draws, tolerance=0.01)
        for draws in ("antithetic", "independent")
    )
    assert designed.num_draws is not None
    assert plain.num_draws is not None
    assert plain.num_draws.max() > designed.num_draws.max()


def test_what_it_cannot_take(batch: Batch) -> None:
    pair = noisy(0.1)
    for wrong in (0, "all", 1.5):
        with pytest.raises(ConfigurationError, match="num_samples="):
            predict(*pair, [batch], num_samples=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="tolerance=0"):
        predict(*pair, [batch], num_samples="auto", tolerance=0)
    model, guide = pair

    class Silent(GaussianRegression):
        averaged = Likelihood.averaged

    model.likelihood = Silent(1.0)
    del batch["labels"]
    with pytest.raises(LikelihoodError, match=r"Silent does not say\. Say how many draws to take"):
        predict(model, guide, [batch], num_samples="auto")


def test_the_trainer_takes_it(tmp_path: Any) -> None:
    model, guide = noisy(0.05)
    rows = learnable_rows(8)
    args = TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, report_to=[], use_cpu=True)
    metrics = SVITrainer(model, guide, args, num_samples="auto", eval_dataset=rows).evaluate()
    passes = PosteriorPasses(model, guide, "auto", args.seed)
    batches = [
        {name: torch.stack([torch.as_tensor(row[name]) for row in rows[start : start + 4]]) for name in rows[0]}
        for start in (0, 4)
    ]
    expected = model.likelihood.metrics(passes.predict(batches))
    assert metrics["eval_nll"] == pytest.approx(expected["nll"], rel=1e-5)


def test_in_words(batch: Batch) -> None:
    quiet = enough_draws(predict(*noisy(1e-3), [batch], num_samples="auto"))
    assert not quiet.flagged
    assert quiet.num_draws == (2, 2)
    assert "The mean alone is within" in quiet.message
    assert "2 draws give it to within" in quiet.message
    loud = enough_draws(predict(*noisy(3.0), [batch], num_samples="auto"))
    assert loud.flagged
    assert loud.mean_within > 0.05
    assert "64 draws leave it uncertain by" in loud.message
    with pytest.raises(ConfigurationError, match="num_samples='auto'"):
        enough_draws(predict(*noisy(0.1), [batch], num_samples=4))
