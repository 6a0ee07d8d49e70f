"""Scale calibration: the best scale of a dense grid, found in few passes; none where the point estimate is better."""

import math
from typing import Any, get_args

import numpy as np
import peft
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import bayes_lora as bl
from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import MonteCLoRAGuide, evaluate, predict
from bayes_lora.inference.guides.autoguides import autoguide
from bayes_lora.inference.guides.mean_field import MeanFieldGuide
from bayes_lora.inference.predictors.scale_calibration import _score, calibrate_scale
from bayes_lora.models import BayesianLoRA, Classification
from tests.networks import Batch, build_network, make_batch

ELBO: dict[str, Any] = {"objective": "elbo", "num_train_examples": 20}
BOUNDS = (1e-2, 10.0)
SAMPLES = 8
CLASSES, BLOCK = Classification(), 4  # of as many draws by design


class LinearClassifier(torch.nn.Module):
    """Logits `sharpness` W x of three classes: under noise on LoRA-A, Gaussian around those at the mean."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3, bias=False)
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.sharpness * self.layer(x),)


def build(
    sharpness: float = 20.0,
    *,
    num_rows: int = 200,
    wrong: float = 0.2,
    dtype: torch.dtype = torch.double,
    **config: Any,
) -> tuple[BayesianLoRA, Batch]:
    """A classifier and rows, labelled with the class it finds most probable, the first fifth with another."""
    torch.manual_seed(0)
    network = peft.get_peft_model(LinearClassifier(sharpness), peft.LoraConfig(r=4, target_modules=["layer"]))
    torch.nn.init.normal_(network.get_parameter("base_model.model.layer.lora_B.default.weight"), std=0.3)
    inputs = torch.randn(num_rows, 6).to(dtype)
    with torch.no_grad():
        labels = network.to(dtype)(inputs)[0].argmax(-1)
    few = round(wrong * num_rows)
    labels[:few] = (labels[:few] + 1) % 3
    return BayesianLoRA(network, bl.MonteCLoRAConfig(**config)), {"x": inputs, "labels": labels}


def nll_at(model: BayesianLoRA, guide: Any, batch: Batch, scale: float) -> float:
    """The obvious way: -ln of the mean probability of the label, at one scale."""
    model.set_sample_scale(scale)
    probs = predict(model, guide, [batch], num_samples=SAMPLES).mean_probs.numpy()
    return float(-np.log(probs[np.arange(len(probs)), batch["labels"].numpy()]).mean())


@pytest.mark.parametrize("config", [{}, ELBO], ids=["paper", "elbo"])
def test_it_finds_the_best_of_a_dense_grid(config: dict[str, Any]) -> None:
    model, batch = build(**config)
    guide = MonteCLoRAGuide(model)
    found = calibrate_scale(model, guide, [batch], num_samples=SAMPLES, bounds=BOUNDS)
    assert torch.equal(model.sample_scale, torch.full((1,), found.scale, dtype=torch.double))
    assert found.nll == pytest.approx(nll_at(model, guide, batch, found.scale))
    assert found.mean_nll == pytest.approx(
        evaluate(predict(model, guide, [batch], at_mean=True).mean_probs, batch["labels"])["nll"]
    )
    grid = np.geomspace(*BOUNDS, 41)
    dense = [nll_at(model, guide, batch, scale) for scale in grid]
    best = grid[int(np.argmin(dense))]
    # The bracket it ends with is a tenth wide, and the grid's step is 19 %.
    assert abs(math.log(found.scale / best)) < math.log(1.1) + math.log(grid[1] / grid[0])
    assert BOUNDS[0] < best < BOUNDS[1]
    assert found.nll < min(dense) + 1e-3 * (max(dense) - min(dense))
    assert found.improves
    assert found.nll < found.mean_nll / 2
    # A control: half and twice the scale are worse by more than that.
    assert all(nll_at(model, guide, batch, factor * found.scale) > found.nll for factor in (0.4, 2.5))


def test_the_search_is_short_and_its_curve_is_kept() -> None:
    model, batch = build()
    steps: list[tuple[float, float]] = []
    found = calibrate_scale(
        model,
        MonteCLoRAGuide(model),
        [batch],
        num_samples=SAMPLES,
        bounds=BOUNDS,
        on_step=lambda scale, nll: steps.append((scale, nll)),
    )
    assert steps[0] == (0.0, found.mean_nll)
    assert tuple(sorted(steps)) == found.tried
    assert (found.scale, found.nll) == min(found.tried, key=lambda pair: pair[1])
    assert 1 + 7 < len(steps) <= 1 + 7 + 8
    np.testing.assert_allclose([scale for scale, _ in steps[1:8]], np.geomspace(*BOUNDS, 7), rtol=1e-5)
    # It closed in: the neighbours of the best are within 10 %.
    scales = [scale for scale, _ in found.tried]
    place = scales.index(found.scale)
    assert scales[place + 1] / scales[place - 1] < 1.1**2
    assert found.bounds == BOUNDS
    assert not found.at_upper_bound


@pytest.mark.parametrize("seed", range(4))
def test_noise_that_does_not_help_is_left_out(seed: int) -> None:
    """Not sure enough, and always right: noise makes it less sure still."""
    model, batch = build(1.0, wrong=0)
    found = calibrate_scale(model, MonteCLoRAGuide(model), [batch], num_samples=SAMPLES, seed=seed, bounds=(1e-2, 10.0))
    assert not found.improves
    assert (found.scale, found.nll) == (0.0, found.mean_nll)
    assert not model.sample_scale.any()
    assert model.sites.noise_state.exact


def test_chance_alone_would_have_said_otherwise() -> None:
    """Of independent draws: for some seed a tiny scale has a smaller NLL than the mean, by less than their error.

    In pairs the draws have no slope at 0 that could be chance.
    """
    model, batch = build(1.0, wrong=0)
    guide = MonteCLoRAGuide(model)
    mean = evaluate(predict(model, guide, [batch], at_mean=True).mean_probs, batch["labels"])["nll"]
    found = {
        draws: [
            calibrate_scale(model, guide, [batch], num_samples=SAMPLES, draws=draws, seed=seed, bounds=(1e-2, 0.1))
            for seed in range(4)
        ]
        for draws in get_args(Draws)
    }
    lower = {
        draws: [min(nll for scale, nll in one.tried if scale > 0) < mean for one in of] for draws, of in found.items()
    }
    assert any(lower["independent"])
    assert not any(lower["antithetic"])
    assert not any(one.improves for of in found.values() for one in of)


def test_few_rows_are_not_enough_to_know() -> None:
    """Of 20 rows the 4 wrong ones have all to say: noise halves the NLL, by far more than the error of its draws, but
    other rows might have none that is wrong."""
    model, batch = build(num_rows=20)
    guide = MonteCLoRAGuide(model)
    found = calibrate_scale(model, guide, [batch], num_samples=SAMPLES, bounds=BOUNDS)
    best, nll = min(found.tried, key=lambda pair: pair[1])
    model.set_sample_scale(best)
    drawn, mean = (
        _score(CLASSES, predict(model, guide, [batch], num_samples=SAMPLES, at_mean=at_mean), BLOCK)
        for at_mean in (False, True)
    )
    assert found.mean_nll - nll > 2 * drawn.error
    difference = (mean.of_rows - drawn.of_rows).numpy()
    assert drawn.error_beside(mean) == pytest.approx(math.hypot(drawn.error, difference.std(ddof=1) / math.sqrt(20)))
    assert found.mean_nll - nll < 2 * drawn.error_beside(mean)
    assert not found.improves


def test_where_scale_zero_is_not_allowed_the_least_is_taken() -> None:
    model, batch = build(1.0, wrong=0, **ELBO)
    found = calibrate_scale(model, MonteCLoRAGuide(model), [batch], num_samples=SAMPLES, bounds=(1e-2, 10.0))
    assert not found.improves
    assert found.scale == 1e-2
    assert found.tried[:2] == ((0.0, found.mean_nll), (1e-2, found.nll))
    assert model.sample_scale.eq(1e-2).all()


def test_a_mean_field_guide_has_the_same_scale() -> None:
    model, batch = build(**ELBO)
    found = calibrate_scale(model, MeanFieldGuide(model), [batch], num_samples=SAMPLES, bounds=BOUNDS)
    assert found.improves
    assert found.nll == pytest.approx(nll_at(model, MeanFieldGuide(model), batch, found.scale))


def test_adapters_keep_their_relation() -> None:
    network, batch = build_network(num_layers=1), make_batch()
    with torch.no_grad():  # so sure that noise helps, since some labels are wrong
        network.get_parameter("base_model.model.classifier.modules_to_save.default.weight").mul_(2000)
    model = BayesianLoRA(network, bl.MonteCLoRAConfig())
    model.set_sample_scale(torch.tensor([0.1, 0.3]))
    found = calibrate_scale(model, MonteCLoRAGuide(model), [batch], num_samples=4, bounds=(1.0, 10.0))
    assert found.scale > 0
    torch.testing.assert_close(model.sample_scale, found.scale * torch.tensor([0.5, 1.5], dtype=torch.double))
    # From 0 there is no relation to keep.
    model.set_sample_scale(0.0)
    found = calibrate_scale(model, MonteCLoRAGuide(model), [batch], num_samples=4, bounds=(1.0, 10.0))
    assert found.scale > 0
    assert model.sample_scale.eq(found.scale).all()


def test_the_error_is_the_one_over_choices_of_draws() -> None:
    """Over independent seeds the NLL at one scale scatters as much as each of them says."""
    model, batch = build(3.0)
    guide = MonteCLoRAGuide(model)
    model.set_sample_scale(0.3)
    scores = [_score(CLASSES, predict(model, guide, [batch], num_samples=16, seed=seed), BLOCK) for seed in range(80)]
    scatter = np.std([score.nll for score in scores], ddof=1)
    # The standard deviation of 80 normal numbers is known to 1 in sqrt(160), and the formula is of first order.
    assert abs(np.mean([score.error for score in scores]) / scatter - 1) < 4 / math.sqrt(160)


def test_the_seed_decides_and_the_callers_generator_does_not() -> None:
    model, batch = build()
    guide = MonteCLoRAGuide(model)
    outcomes = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        outcomes.append(calibrate_scale(model, guide, [batch], num_samples=4, seed=seed, bounds=(0.1, 10.0)))
        assert torch.equal(torch.get_rng_state(), state)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2]


def test_a_loader_that_can_be_read_once() -> None:
    model, batch = build()
    guide = MonteCLoRAGuide(model)
    parts = [{name: value[start : start + 100] for name, value in batch.items()} for start in (0, 100)]
    whole = calibrate_scale(model, guide, [batch], num_samples=4, bounds=(0.1, 10.0))
    once = calibrate_scale(model, guide, iter(parts), num_samples=4, bounds=(0.1, 10.0))
    assert once.scale == whole.scale
    np.testing.assert_allclose(once.tried, whole.tried, rtol=1e-9)


def test_a_bound_that_is_too_low_is_seen() -> None:
    model, batch = build()
    found = calibrate_scale(model, MonteCLoRAGuide(model), [batch], num_samples=4, bounds=(1e-2, 0.02))
    assert found.at_upper_bound
    assert found.scale == 0.02


def test_noise_that_breaks_the_network_is_only_a_bad_scale() -> None:
    model, batch = build(dtype=torch.float32)
    found = calibrate_scale(model, MonteCLoRAGuide(model), [batch], num_samples=4, bounds=(1e32, 1e38))
    assert found.tried[-1][1] == math.inf
    assert math.isfinite(found.nll)


@pytest.mark.parametrize("bounds", [(0.1,), 0.1, (0.0, 1.0), (-1.0, 1.0), (1.0, 0.1), (0.1, 0.1), (0.1, math.inf)])
def test_bounds_are_checked(bounds: Any) -> None:
    model, batch = build()
    with pytest.raises(ConfigurationError, match="bounds"):
        calibrate_scale(model, MonteCLoRAGuide(model), [batch], bounds=bounds)


def test_errors_leave_the_scale_alone() -> None:
    model, batch = build()
    model.set_sample_scale(0.7)
    guide = MonteCLoRAGuide(model)
    unlabelled = [{"x": batch["x"]}]
    with pytest.raises(DataError, match=r"the held-out rows have no labels.*Pass batches with 'labels'"):
        calibrate_scale(model, guide, unlabelled)
    with pytest.raises(DataError, match="the loader has no batches"):
        calibrate_scale(model, guide, [])
    with pytest.raises(DataError, match=r"labels run from 0 to 7, but there are 3 classes"):
        calibrate_scale(model, guide, [{**batch, "labels": torch.tensor([7, *[0] * 199])}])
    with pytest.raises(ConfigurationError, match=r"num_samples=3 says nothing about the error .* Use 4 or more"):
        calibrate_scale(model, guide, [batch], num_samples=3)
    with pytest.raises(ConfigurationError, match=r"num_samples=1 says nothing about the error .* Use 2 or more"):
        calibrate_scale(model, guide, [batch], num_samples=1, draws="independent")

    def interrupt(scale: float, nll: float) -> None:
        if scale > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_scale(model, guide, [batch], num_samples=4, on_step=interrupt)
    assert model.sample_scale.item() == 0.7


@pytest.mark.parametrize("case", ["autoguide", "lora_B is 0"])
def test_a_flat_curve_is_explained(case: str) -> None:
    model, batch = build(**ELBO)
    guide: Any = autoguide(model, AutoNormal) if case == "autoguide" else MonteCLoRAGuide(model)
    if case != "autoguide":
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(parameter)
    with pytest.raises(ConfigurationError, match="at every sample_scale, so there is nothing to calibrate"):
        calibrate_scale(model, guide, [batch], num_samples=4)
    assert model.sample_scale.eq(5e-3).all()
