"""Convolutions under noise: LoRA-A is a matrix of as many columns as the kernel sees values."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import Conv1d, Conv2d
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d

import bayes_lora as bl
from bayes_lora.adapters import find_adapters, unwrap
from bayes_lora.errors import AdapterError, UnsupportedAdapterError
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide, autoguide, load_posterior, predict, save_posterior
from bayes_lora.models import BayesianLoRA, Classification
from tests.models.test_gradients import derivative
from tests.networks import build_pair

ROWS, CLASSES = 4, 3
Batch = dict[str, Tensor]


class Convolutional(nn.Module):
    """Pictures (row, 3, 6, 6) through two convolutions over both sides and one over all places in a line."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, (3, 2), stride=2, padding=1, groups=2)
        self.line = nn.Conv1d(4, 5, 3, bias=False)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> tuple[Tensor]:
        hidden = self.grouped(self.first(pixels).tanh()).tanh()
        return (self.head(self.line(hidden.flatten(2)).tanh().mean(-1)),)


def build_base() -> nn.Module:
    torch.manual_seed(0)
    return Convolutional().double()


# peft's own, about merging
pytestmark = pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1")


def build_network(**options: Any) -> Any:
    found: dict[str, Any] = {"r": 2, "target_modules": ["first", "grouped", "line"], "modules_to_save": ["head"]}
    network = peft.get_peft_model(build_base(), peft.LoraConfig(**found | options))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture
def pictures() -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(ROWS, 3, 6, 6, generator=generator, dtype=torch.float64)
    return {"pixels": pixels, "labels": torch.arange(ROWS) % CLASSES}


def build(**config: Any) -> Any:
    return build_pair(build_network(), **{"sample_scale": 0.3} | config)


def random_noises(model: BayesianLoRA, *draws: int) -> list[Tensor]:
    return [torch.randn(*draws, len(g), g.rank, g.in_features).double() for g in model.sites.groups]


def noisy(model: BayesianLoRA, noises: list[Tensor], pictures: Batch) -> Tensor:
    with torch.no_grad(), model.perturbed(noises):
        return model.network_logits(pictures)


def test_columns_are_what_the_kernel_sees() -> None:
    adapters = find_adapters(build_network())
    assert [(a.name, a.rank, a.in_features) for a in adapters] == [
        ("line", 2, 4 * 3),
        ("grouped", 2, 4 * 3 * 2),
        ("first", 2, 3 * 3 * 3),
    ]
    for adapter in adapters:
        assert torch.equal(adapter.mean, adapter.linear.weight.reshape(adapter.rank, adapter.in_features))
    model, guide = build(objective="elbo", num_train_examples=20)
    assert set(guide().columns[0].shape) >= {1, 12, 2}
    assert {f"A_r2_n{n}" for n in (12, 24, 27)} == {model.sites.column_site(group) for group in model.sites.groups}


@pytest.mark.shows("adapter", "works", "LoRA of Conv1d and Conv2d")
def test_under_noise_it_is_lora_with_the_drawn_weight(pictures: Batch) -> None:
    model, _ = build()
    noises = random_noises(model)
    shifted = unwrap(copy.deepcopy(model.network))
    with torch.no_grad():
        for adapter, noise in zip(find_adapters(shifted), [n for group in noises for n in group], strict=True):
            adapter.linear.weight += noise.reshape(adapter.linear.weight.shape)
    torch.testing.assert_close(noisy(model, noises, pictures), shifted(**pictures)[0])
    quiet = [torch.zeros_like(noise) for noise in noises]
    assert (noisy(model, quiet, pictures) - noisy(model, noises, pictures)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["first", "line"])
def test_a_layer_written_out(name: str) -> None:
    """One convolution with the kernel W + s sum_k B_ok A_k, A_k the k-th row of A as a kernel."""
    model, _ = build()
    noises = random_noises(model)
    adapters = dict(zip(model.sites.names, model.sites.adapters, strict=True))
    noise = dict(zip(model.sites.names, [n for group in noises for n in group], strict=True))[name]
    layer: Any = adapters[name].layer
    base, b = layer.base_layer, layer.lora_B["default"].weight.flatten(1)
    delta = layer.scaling["default"] * b @ (adapters[name].mean + noise)
    kernel = base.weight + delta.reshape(base.weight.shape)
    x = torch.randn(ROWS, *((3, 6, 6) if name == "first" else (4, 9)), dtype=torch.float64)
    by_hand = conv2d(x, kernel, base.bias, padding=1) if name == "first" else conv1d(x, kernel)
    with torch.no_grad(), model.perturbed(noises):
        torch.testing.assert_close(layer(x), by_hand)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_noise_it_is_peft_bit_for_bit(pictures: Batch, dtype: torch.dtype) -> None:
    pixels = pictures["pixels"].to(dtype)
    plain = build_network().to(dtype)
    model, guide = build_pair(copy.deepcopy(plain), sample_scale=0.0)
    expected = plain(pixels)[0]
    assert torch.equal(model.network(pixels)[0], expected)
    assert torch.equal(predict(model, guide, [{"pixels": pixels}], num_samples=1).logits[0].to(dtype), expected)


def test_stacked_draws_are_those_of_one_by_one(pictures: Batch) -> None:
    model, guide = build()
    together, one_by_one = (
        predict(model, guide, [pictures], num_samples=4, draws_per_pass=draws).logits for draws in (None, 1)
    )
    torch.testing.assert_close(together, one_by_one)
    assert together.std(0).max() > 1e-2
    with (
        pytest.raises(AdapterError, match=r"first: its input has 4 rows where 2 stacked draws have 8, so rows"),
        torch.no_grad(),
        model.perturbed(random_noises(model, 2), num_rows=2 * ROWS),
    ):
        model.network_logits(pictures)


@pytest.mark.parametrize(
    "config", [{"kl_weight": 0.3}, {"objective": "elbo", "num_train_examples": 20}], ids=["paper", "elbo"]
)
def test_finite_differences(pictures: Batch, config: dict[str, Any]) -> None:
    model, guide = build(**config)

    def loss() -> Tensor:
        torch.manual_seed(5)
        return ItemizedELBO().differentiable_loss(model, guide, **pictures)

    loss().backward()
    named = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
    wanted = ("lora_A", "lora_B", "scale_r2")
    checked = {name: p for name, p in named.items() if any(part in name for part in wanted)}
    assert len(checked) == 7
    for name, parameter in checked.items():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(1))
        expected = derivative(loss, parameter, direction, step=2e-4)
        assert (parameter.grad * direction).sum().item() == pytest.approx(expected, rel=1e-6), name


def test_merged_it_is_the_mean(pictures: Batch) -> None:
    network = build_network(target_modules=["first", "line"])  # PEFT merges no groups
    model, guide = build_pair(network, sample_scale=0.3)
    mean = network(**pictures)[0]
    torch.testing.assert_close(copy.deepcopy(network).merge_and_unload()(**pictures)[0], mean)
    network.merge_adapter()
    with pytest.raises(AdapterError, match=r"the adapter is merged .*unmerge_adapter\(\)"):
        predict(model, guide, [pictures], num_samples=2)


def test_wrapping_and_unwrapping_leave_the_network_as_it_was(pictures: Batch) -> None:
    network = build_network()
    text, names, parameters = str(network), list(network.state_dict()), dict(network.named_parameters())
    logits = network(**pictures)[0]
    build_pair(network)
    assert list(network.state_dict()) == names
    unwrap(network)
    assert str(network) == text
    assert all(parameter is parameters[name] for name, parameter in network.named_parameters())
    assert torch.equal(network(**pictures)[0], logits)
    layers = [adapter.layer for adapter in find_adapters(network)]
    assert {type(layer) for layer in layers} == {Conv1d, Conv2d}


def test_saved_and_loaded(pictures: Batch, tmp_path: Path) -> None:
    model = BayesianLoRA(build_network(), bl.MonteCLoRAConfig(sample_scale=0.3), Classification())
    guide = MonteCLoRAGuide(model)
    save_posterior(model, guide, tmp_path / "posterior")
    loaded = load_posterior(build_base(), tmp_path / "posterior")
    found, expected = (
        predict(of, with_guide, [pictures], num_samples=3).logits for of, with_guide in (loaded, (model, guide))
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_autoguide_puts_its_centre_into_the_kernels(pictures: Batch, memory_format: torch.memory_format) -> None:
    network = build_network().to(memory_format=memory_format)
    model = BayesianLoRA(network, bl.MonteCLoRAConfig(objective="elbo", num_train_examples=20))
    guide = autoguide(model, AutoNormal, init_scale=0.1)
    before = network(**pictures)[0].detach()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3
    guide.copy_median_to_adapters()
    median = guide.median()
    for adapter, group in zip(model.sites.adapters, model.sites.groups, strict=True):
        assert torch.equal(adapter.mean, median[model.sites.column_site(group)][0].mT)
    assert not torch.allclose(network(**pictures)[0], before)


class Standardized(nn.Conv2d):
    pass


def standardized() -> Any:
    base = Convolutional()
    base.first = Standardized(3, 4, 3, padding=1)
    return peft.get_peft_model(base, peft.LoraConfig(target_modules=["first"]))


@pytest.mark.shows("adapter", "refused", {"DoRA": "DoRA of convolutions"})
@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: build_network(use_dora=True), r"^first: adapter 'default' is a DoraConv2d adapter; .*DoRA of Linear"),
        (
            standardized,
            r"^first: LoRA-A of adapter 'default' is a Standardized, not a plain Linear or Conv1d",
        ),
    ],
    ids=["DoRA", "a subclass"],
)
def test_refused(refused: Any, message: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message):
        build_pair(refused())
