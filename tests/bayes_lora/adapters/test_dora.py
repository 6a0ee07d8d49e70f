"""DoRA under noise: against its equation written out, PEFT's own forward pass, and one draw at a time."""

import copy
from typing import Any

import peft
import pytest
import torch
from peft.helpers import DoraCaching
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from bayes_lora.adapters import find_adapters, unwrap
from bayes_lora.adapters.dora import dora_gain, restore_dora
from bayes_lora.adapters.fused import unfuse
from bayes_lora.errors import AdapterError
from bayes_lora.inference import ItemizedELBO, predict
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, build_pair

# transformers 5.23 renames it; earlier 5.x know this name only.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")


def build_dora(**options: Any) -> Any:
    """All Linears of the blocks."""
    targets = {"target_modules": ["query", "key", "value", "dense"], "rank_pattern": {"value": 2}}
    found: Any = {"use_dora": True, **targets} | options
    return build_network(**found)


def build_gpt2() -> Any:
    """Weights laid out as (in_features, out_features)."""
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 3}
    config = GPT2Config(vocab_size=50, n_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=1, **sizes)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=3, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, use_dora=True)
    network = peft.get_peft_model(GPT2ForSequenceClassification(config), lora).double().eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return network


def random_noises(model: BayesianLoRA, *draws: int) -> list[Tensor]:
    return [0.3 * torch.randn(*draws, len(g), g.rank, g.in_features).double() for g in model.sites.groups]


def by_hand(network: Any, noises: list[Tensor], norm_of: str = "draw") -> nn.Module:
    """The base network with W' = m (W + s B (mu + P)) / n as plain weights; n the norm of what it divides, row by row.

    With `norm_of` "mean" or "base" it is that of W + s B mu or of W: wrong, for controls.
    """
    merged = unwrap(copy.deepcopy(network))
    adapters = find_adapters(merged)
    for adapter, noise in zip(adapters, [noise for group in noises for noise in group], strict=True):
        layer, key = adapter.layer, adapter.key
        base, b, a = layer.get_base_layer(), layer.lora_B[key].weight, layer.lora_A[key].weight
        w = base.weight.T if layer.fan_in_fan_out else base.weight
        direction = w + layer.scaling[key] * b @ (a + noise)
        divided = {"draw": direction, "mean": w + layer.scaling[key] * b @ a, "base": w}[norm_of]
        rows = layer.lora_magnitude_vector[key].weight / divided.square().sum(1).sqrt()
        new = rows[:, None] * direction
        base.weight.data = (new.T if layer.fan_in_fan_out else new).detach()
        parent, _, child = f"base_model.model.{adapter.name}".rpartition(".")
        setattr(merged.get_submodule(parent), child, base)
    return merged


def noisy(model: BayesianLoRA, noises: list[Tensor], batch: Batch) -> Tensor:
    with torch.no_grad(), model.perturbed(noises):
        return model.network_logits(batch)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("build", [build_dora, build_gpt2])
def test_under_noise_it_is_the_equation(batch: Batch, build: Any, fused: bool) -> None:
    network = build()
    model, _ = build_pair(network, sample_scale=0.3)
    if not fused:
        for adapter in model.sites.adapters:
            unfuse(adapter.layer)
    torch.manual_seed(1)
    noises = random_noises(model)
    found, expected = noisy(model, noises, batch), by_hand(network, noises)(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # Negative controls: a norm that does not follow the draw would be seen, and so would one that follows nothing.
    for wrong in ("mean", "base"):
        assert (by_hand(network, noises, norm_of=wrong)(**batch).logits - found).abs().max() > 1e-3
    quiet = [torch.zeros_like(noise) for noise in noises]
    torch.testing.assert_close(by_hand(network, quiet)(**batch).logits, network(**batch).logits)


@pytest.mark.parametrize("stacked", [(), (3,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gain_written_out(dtype: torch.dtype, stacked: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    m, w, a, b = (torch.randn(size).to(dtype) for size in [(7,), (7, 5), (*stacked, 2, 5), (7, 2)])
    found = dora_gain(m, w, a, b, 0.7)
    exact = m.double() / (w.double() + 0.7 * b.double() @ a.double()).norm(dim=-1)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    # Sums of some tens of products, in float32 or better, also where the factors are not.
    torch.testing.assert_close(found.double(), exact, rtol=64 * torch.finfo(found.dtype).eps, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dora_gain(m, w, a, b, 0.7), found)


def test_a_row_of_zeros_grows_from_nothing() -> None:
    m, w, a = torch.ones(2), torch.zeros(2, 5), torch.randn(1, 5)
    gain = dora_gain(m, w, a, torch.tensor([[2.0], [0.0]]), 1.0)
    torch.testing.assert_close(gain[0], 1 / (2 * a.norm()))
    assert gain[1].isinf()  # as PEFT's


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_noise_it_is_peft_bit_for_bit(batch: Batch, dtype: torch.dtype) -> None:
    plain = build_dora(dtype=dtype)
    network = copy.deepcopy(plain)
    model, guide = build_pair(network, sample_scale=0.0)
    expected = plain(**batch).logits
    assert torch.equal(network(**batch).logits, expected)
    assert torch.equal(predict(model, guide, [batch], num_samples=1).logits[0].to(dtype), expected)
    assert torch.equal(predict(model, guide, [batch], at_mean=True).logits[0].to(dtype), expected)
    model.set_sample_scale(0.3)
    assert torch.equal(network(**batch).logits, expected)
    assert not torch.equal(predict(model, guide, [batch], num_samples=1).logits[0].to(dtype), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_in_training_is_that_of_peft(batch: Batch, dropout: float) -> None:
    def trained(own: bool) -> dict[str, Tensor]:
        model, guide = build_pair(build_dora(lora_dropout=dropout), sample_scale=0.3)
        for adapter in model.sites.adapters:
            unfuse(adapter.layer)
            if not own:
                restore_dora(adapter.layer)
        torch.manual_seed(0)
        loss = ItemizedELBO().differentiable_loss(model.train(), guide, **batch)
        loss.backward()
        named = [*model.named_parameters(), *guide.named_parameters()]
        return {"loss": loss.detach(), **{name: p.grad for name, p in named if p.grad is not None}}

    found, expected = trained(own=True), trained(own=False)
    assert found.keys() == expected.keys()
    assert any("lora_magnitude_vector" in name for name in found)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-10 * value.abs().max().clamp_min(1e-3), name


@pytest.mark.parametrize("repeats", [1, 3])
def test_stacked_draws_have_the_norms_of_their_own_draws(batch: Batch, repeats: int) -> None:
    """8 rows under 2 draws are as many as the layers have inputs, 16: PEFT's identity would pass for a batch."""
    inputs = {name: value.repeat(2, 1)[:8] for name, value in batch.items() if name != "labels"}
    targets = ["query", "key", "value", "attention.output.dense"]
    model, guide = build_pair(build_dora(target_modules=targets), sample_scale=0.3)
    stacked = random_noises(model, 2 * repeats)
    expected = torch.cat([noisy(model, [group[draw] for group in stacked], inputs) for draw in range(2 * repeats)])

    def together() -> Tensor:
        repeated = {name: value.repeat(2 * repeats, 1) for name, value in inputs.items()}
        with torch.no_grad(), model.perturbed(stacked, num_rows=16 * repeats):
            return model.network_logits(repeated)

    torch.testing.assert_close(together(), expected)
    one_by_one, many = (predict(model, guide, [inputs], num_samples=4, draws_per_pass=n).logits for n in (1, None))
    torch.testing.assert_close(many, one_by_one)
    for adapter in model.sites.adapters:
        restore_dora(adapter.layer)
    if repeats == 1:
        assert (together() - expected).abs().max() > 0.1 * expected.abs().max()
    else:
        with pytest.raises(AdapterError, match="cannot be told apart by draw"):
            together()


def test_peft_s_cache_does_not_keep_a_draw(batch: Batch) -> None:
    model, guide = build_pair(build_dora(), sample_scale=0.3)
    expected, mean = predict(model, guide, [batch], num_samples=4).logits, model.network(**batch).logits
    with DoraCaching():
        torch.testing.assert_close(predict(model, guide, [batch], num_samples=4).logits, expected)
        assert torch.equal(model.network(**batch).logits, mean)
        assert torch.equal(model.network(**batch).logits, mean)
        torch.testing.assert_close(predict(model, guide, [batch], num_samples=4).logits, expected)
        for adapter in model.sites.adapters:
            unfuse(adapter.layer)
            restore_dora(adapter.layer)
        kept = predict(model, guide, [batch], num_samples=4, draws_per_pass=1).logits
        assert (kept - expected).abs().max() > 1e-3


def test_merged_it_is_the_mean(batch: Batch) -> None:
    network = build_dora()
    model, guide = build_pair(network, sample_scale=0.3)
    mean = network(**batch).logits
    drawn = predict(model, guide, [batch], num_samples=2).logits
    merged = copy.deepcopy(network).merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, mean)
    network.merge_adapter()
    torch.testing.assert_close(network(**batch).logits, mean)
    with pytest.raises(AdapterError, match=r"the adapter is merged .*unmerge_adapter\(\)"):
        predict(model, guide, [batch], num_samples=2)
    network.unmerge_adapter()
    torch.testing.assert_close(predict(model, guide, [batch], num_samples=2).logits, drawn)


def test_gradient_checkpointing_recomputes_with_the_same_noise(batch: Batch) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        network = build_dora()
        if checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model, guide = build_pair(network, sample_scale=0.4)
        torch.manual_seed(0)
        ItemizedELBO()(model.train(), guide)(**batch).backward()
        named = [*model.named_parameters(), *guide.named_parameters()]
        return {name: parameter.grad for name, parameter in named if parameter.grad is not None}

    found, expected = gradients(True), gradients(False)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.shows("adapter", "works", "DoRA beside plain LoRA on one layer")
def test_beside_a_plain_adapter(batch: Batch) -> None:
    """Two adapters active on one layer, the one with a magnitude and the other without."""
    network = build_network(task_type=None, use_dora=True, target_modules=["query"])
    network.add_adapter("other", peft.LoraConfig(r=2, target_modules=["query"]))
    network.double().base_model.set_adapter(["default", "other"])
    for name, parameter in network.named_parameters():
        if "lora_B.other" in name:
            nn.init.normal_(parameter)
    shifted = copy.deepcopy(network)
    model, _ = build_pair(network, sample_scale=0.3)
    noises = random_noises(model)
    drawn = [noise for group in noises for noise in group]
    with torch.no_grad():
        for adapter, noise in zip(find_adapters(shifted), drawn, strict=True):
            adapter.linear.weight += noise
        torch.testing.assert_close(noisy(model, noises, batch), shifted(**batch).logits)
