"""The Linear that adds the noise: when it is seen, and that gradient checkpointing recomputes with the same."""

import copy
import pickle
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from bayes_lora.adapters.perturbation import NoiseState, PerturbedLinear
from bayes_lora.errors import AdapterError, CheckpointingError
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, build_pair

# transformers 5.23 renames it; earlier 5.x know this name only.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")

DRAWS, ROWS, TOKENS, RANK, WIDTH = 3, 4, 5, 2, 6


def build_linear(dtype: torch.dtype = torch.float64) -> tuple[PerturbedLinear, nn.Linear]:
    """A perturbed Linear and the plain one it came from."""
    torch.manual_seed(0)
    plain = nn.Linear(WIDTH, RANK, bias=False, dtype=dtype)
    return PerturbedLinear(plain, NoiseState(), "layer.query"), plain


def test_it_is_the_plain_linear_outside() -> None:
    perturbed, plain = build_linear()
    x = torch.randn(ROWS, TOKENS, WIDTH, dtype=torch.double)
    perturbed.draw = torch.randn(RANK, WIDTH, dtype=torch.double)
    with torch.no_grad():
        assert torch.equal(perturbed(x), plain(x))
    perturbed.noise_state.on = True
    assert not torch.equal(perturbed(x), plain(x))
    perturbed.draw = None
    assert torch.equal(perturbed(x), plain(x))


def test_it_shares_the_weight() -> None:
    perturbed, plain = build_linear()
    assert perturbed.weight is plain.weight
    assert perturbed.to_plain().weight is plain.weight
    assert type(perturbed.to_plain()) is nn.Linear
    assert set(perturbed.state_dict()) == set(plain.state_dict())


def test_it_multiplies_with_the_draw() -> None:
    perturbed, _ = build_linear()
    x = torch.randn(ROWS, TOKENS, WIDTH, dtype=torch.double)
    perturbed.draw, perturbed.noise_state.on = torch.randn(RANK, WIDTH, dtype=torch.double), True
    torch.testing.assert_close(perturbed(x), x @ perturbed.draw.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draw_is_the_mean_and_the_noise_cast_to_its_dtype(dtype: torch.dtype, batch: Batch) -> None:
    model, _ = build_pair(build_network(dtype=dtype))
    noises = [torch.randn(len(group), group.rank, group.in_features) for group in model.sites.groups]
    with model.perturbed(noises):
        model.network(**batch)
        drawn = [linear.draw for linear in linears(model)]
    for linear, draw, noise in zip(linears(model), drawn, [n for group in noises for n in group], strict=True):
        assert draw.dtype == dtype
        assert torch.equal(draw, linear.weight + noise.to(dtype))


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (ROWS, TOKENS, WIDTH), (ROWS, TOKENS, 2, WIDTH)])
def test_stacked_draws_equal_one_by_one(shape: tuple[int, ...]) -> None:
    perturbed, _ = build_linear()
    x = torch.randn(DRAWS, *shape, dtype=torch.double)
    draws = torch.randn(DRAWS, RANK, WIDTH, dtype=torch.double)
    perturbed.noise_state.on, perturbed.noise_state.num_rows = True, DRAWS * ROWS
    perturbed.draw = draws
    stacked = perturbed(x.flatten(0, 1)).unflatten(0, (DRAWS, ROWS))
    for draw in range(DRAWS):
        perturbed.draw = draws[draw]
        torch.testing.assert_close(stacked[draw], perturbed(x[draw]))
    assert not torch.allclose(stacked[0], stacked[1])


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    perturbed, _ = build_linear()
    perturbed.noise_state.on, perturbed.noise_state.num_rows = True, DRAWS * ROWS
    perturbed.draw = torch.zeros(DRAWS, RANK, WIDTH, dtype=torch.double)
    # A network that merges rows and tokens: the number of rows still divides by the number of draws.
    with pytest.raises(AdapterError, match=r"layer.query: its input has 60 rows where 3 stacked draws have 12"):
        perturbed(torch.zeros(DRAWS * ROWS * TOKENS, WIDTH, dtype=torch.double))


def training_pair(checkpointing: bool, use_reentrant: bool = False) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    network = build_network()
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model, guide = build_pair(network, sample_scale=0.4, kl_weight=0.1)
    model.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in network.modules()) == checkpointing
    return model, guide


def linears(model: BayesianLoRA) -> list[Any]:
    return [adapter.linear for adapter in model.sites.adapters]


def test_copies_and_files_start_without_noise(batch: Batch) -> None:
    model, guide = training_pair(checkpointing=False)
    ItemizedELBO()(model, guide)(**batch)
    assert all(linear.draw is not None for linear in linears(model))
    copied_model, _ = copy.deepcopy((model, guide))
    loaded_model, _ = pickle.loads(pickle.dumps((model, guide)))
    with torch.no_grad():
        expected = model.network(**batch).logits
        for other in (copied_model, loaded_model):
            assert all(linear.draw is None for linear in linears(other))
            assert {id(linear.noise_state) for linear in linears(other)} == {id(other.sites.noise_state)}
            assert torch.equal(other.network(**batch).logits, expected)
    assert all(linear.draw is not None for linear in linears(model))


def gradients(model: BayesianLoRA, guide: MonteCLoRAGuide) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *guide.named_parameters()]
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def step_gradients(batch: Batch, *, checkpointing: bool, before_backward: Any = None) -> dict[str, Tensor]:
    """Gradients of one loss at one seed; `before_backward` may meddle with the model between the passes."""
    model, guide = training_pair(checkpointing)
    torch.manual_seed(0)
    loss = ItemizedELBO()(model, guide)(**batch)
    if before_backward is not None:
        before_backward(model)
    loss.backward()
    return gradients(model, guide)


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(((first[name] - second[name]).abs().max() / first[name].abs().max()).item() for name in first)


def test_gradient_checkpointing_recomputes_with_the_same_noise(batch: Batch) -> None:
    plain = step_gradients(batch, checkpointing=False)
    assert {"concentration_unconstrained", "scale_r4_unconstrained"} <= set(plain)
    assert largest_difference(plain, step_gradients(batch, checkpointing=True)) < 1e-10


def clear(model: BayesianLoRA) -> None:
    for linear in linears(model):
        linear.draw = None


def redraw(model: BayesianLoRA) -> None:
    for linear in linears(model):
        linear.draw = linear.weight + torch.randn_like(linear.weight)


@pytest.mark.parametrize("meddle", [clear, redraw])
def test_other_noise_in_the_backward_pass_gives_other_gradients(batch: Batch, meddle: Any) -> None:
    plain = step_gradients(batch, checkpointing=False)
    if meddle is clear:  # without noise the layers do not even compute the same intermediate values
        with pytest.raises(CheckpointError, match="different metadata than during the forward pass"):
            step_gradients(batch, checkpointing=True, before_backward=meddle)
    else:
        assert largest_difference(plain, step_gradients(batch, checkpointing=True, before_backward=meddle)) > 1e-2
    # Without recomputation nobody looks at it again.
    assert largest_difference(plain, step_gradients(batch, checkpointing=False, before_backward=meddle)) == 0


def test_predicting_between_the_passes_does_not_disturb_the_backward_pass(batch: Batch) -> None:
    def look(model: BayesianLoRA) -> None:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            model.network(**inputs)
            with model.perturbed([torch.ones(len(g), g.rank, g.in_features) for g in model.sites.groups]):
                model.network(**inputs)

    plain = step_gradients(batch, checkpointing=False)
    assert largest_difference(plain, step_gradients(batch, checkpointing=True, before_backward=look)) < 1e-10


def test_training_the_plain_network_afterwards_sees_no_noise(batch: Batch) -> None:
    expected = build_network()
    expected.train()(**batch).loss.backward()
    model, guide = training_pair(checkpointing=True)
    ItemizedELBO()(model, guide)(**batch).backward()
    model.zero_grad()
    model.network(**batch).loss.backward()
    trained = dict(model.network.named_parameters())
    for name, parameter in expected.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(trained[name].grad, parameter.grad)


def test_reentrant_checkpointing_is_refused(batch: Batch) -> None:
    model, guide = training_pair(checkpointing=True, use_reentrant=True)
    with pytest.raises(CheckpointingError, match=r"reentrant gradient checkpointing.*\{'use_reentrant': False\}"):
        ItemizedELBO()(model, guide)(**batch)
    # Where nothing is recomputed there is nothing to refuse.
    model.eval()
    ItemizedELBO()(model, guide)(**batch).backward()


@pytest.mark.parametrize("elbo", [ItemizedELBO, TraceMeanField_ELBO, Trace_ELBO])
def test_particles_together_with_checkpointing_are_refused(batch: Batch, elbo: Any) -> None:
    model, guide = training_pair(checkpointing=True)
    with pytest.raises(CheckpointingError, match=r"before the backward pass of the one before.*num_particles=1"):
        elbo(num_particles=2)(model, guide)(**batch)
    elbo(num_particles=2).loss(model.eval(), guide, **batch)


def test_two_passes_before_one_backward_are_refused_under_checkpointing(batch: Batch) -> None:
    model, guide = training_pair(checkpointing=True)
    loss_of = ItemizedELBO()(model, guide)
    first = loss_of(**batch)
    with pytest.raises(CheckpointingError, match="before the backward pass of the one before"):
        loss_of(**batch)
    with pytest.raises(CheckpointingError, match="before the backward pass of the one before"):
        model.network(**batch)
    first.backward()
    loss_of(**batch).backward()
    # A pass that nobody will back-propagate any more does not count, nor does one without recomputation.
    abandoned = loss_of(**batch)
    del abandoned
    loss_of(**batch).backward()
    model.eval()
    (loss_of(**batch) + loss_of(**batch)).backward()
