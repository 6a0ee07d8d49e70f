"""Bottleneck adapters: the formula, the start, the places, and what is trained."""

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from bayes_lora.errors import AdapterError, ConfigurationError
from bayes_lora.inference.finetuning.bottleneck import Bottleneck, add_bottlenecks
from bayes_lora.inference.finetuning.point_networks import make_network
from tests.networks import Batch, build_bert, build_llama
from tests.statistics import assert_mean

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 3,
    "max_position_embeddings": 32,
}


def build_encoder(**options: Any) -> tuple[Any, Any]:
    """A BERT without and with adapters."""
    torch.manual_seed(0)
    base = build_bert().double().eval()
    adapted = copy.deepcopy(base)
    add_bottlenecks(adapted, ["classifier"], size=5, **options)
    return base, adapted


def logits(network: PreTrainedModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        return network(**batch).logits  # type: ignore[no-any-return]


def redraw(network: torch.nn.Module) -> None:
    """Move every adapter far from its start."""
    for module in network.modules():
        if isinstance(module, Bottleneck):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.5)


@contextmanager
def without_adapters(network: torch.nn.Module) -> Iterator[None]:
    """The network as it was, for a while."""
    held = {module: dict(module._forward_hooks) for module in network.modules() if hasattr(module, "bottleneck")}
    for module in held:
        module._forward_hooks.clear()
    yield
    for module, hooks in held.items():
        module._forward_hooks.update(hooks)


def test_the_formula() -> None:
    bottleneck = Bottleneck(6, 3).double()
    redraw(bottleneck)
    hidden = torch.randn(2, 4, 6, dtype=torch.double)
    inside = hidden @ bottleneck.down.weight.T + bottleneck.down.bias
    inside = 0.5 * inside * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inside + 0.044715 * inside**3)))
    expected = hidden + inside @ bottleneck.up.weight.T + bottleneck.up.bias
    torch.testing.assert_close(bottleneck(hidden), expected, rtol=0, atol=1e-14)


def test_the_start_is_within_its_bound_of_the_identity() -> None:
    std = 1e-2
    bottleneck = Bottleneck(64, 32, std).double()
    hidden = torch.randn(50, 64, dtype=torch.double)
    down, up = bottleneck.down, bottleneck.up
    moved = (bottleneck(hidden) - hidden).norm(dim=-1)
    bound = torch.linalg.matrix_norm(up.weight, 2) * torch.linalg.matrix_norm(down.weight, 2) * hidden.norm(dim=-1)
    assert (moved > 0).all()
    assert (moved <= bound).all()
    assert not down.bias.any()
    assert not up.bias.any()
    # Cut off at two standard deviations, a normal keeps 1 - 4 phi(2) / (2 Phi(2) - 1) = 0.7737 of its variance.
    for weight in (down.weight, up.weight):
        assert weight.abs().max() <= 2 * std
        assert_mean(weight.detach().flatten() ** 2 / std**2, 0.7737)


def test_a_network_starts_near_its_base_to_second_order(batch: Batch) -> None:
    def moved(init_std: float) -> float:
        base, adapted = build_encoder(init_std=init_std)
        return float((logits(adapted, batch) - logits(base, batch)).abs().max())

    # W_up gelu(W_down h) = W_up W_down h / 2 + O(|W_down|^2): a tenth of the weights, a hundredth of the way.
    assert 0 < moved(1e-2) < 1e-2
    assert moved(1e-2) / moved(1e-3) == pytest.approx(100, rel=0.1)


def test_without_its_up_projection_a_network_is_its_base(batch: Batch) -> None:
    base, adapted = build_encoder()
    assert not torch.equal(logits(adapted, batch), logits(base, batch))
    for module in adapted.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.zeros_(module.up.weight)
    assert torch.equal(logits(adapted, batch), logits(base, batch))


def test_adapters_sit_before_the_residual_connections(batch: Batch) -> None:
    _, network = build_encoder()
    redraw(network)
    tokens = batch["input_ids"]
    hidden = network.bert.embeddings(tokens)
    for layer in network.bert.encoder.layer:
        after, before = layer.attention.output, hidden
        context = layer.attention.self(hidden)[0]
        hidden = after.LayerNorm(after.dropout.bottleneck(after.dense(context)) + before)
        inside = layer.intermediate(hidden)
        hidden = layer.output.LayerNorm(layer.output.dropout.bottleneck(layer.output.dense(inside)) + hidden)
    expected = network.classifier(network.bert.pooler(hidden))
    torch.testing.assert_close(network(tokens).logits, expected, rtol=1e-12, atol=1e-12)


def test_dropout_comes_before_the_adapter() -> None:
    network: Any = build_bert(num_layers=1, dropout=0.5).double().train()
    add_bottlenecks(network, ["classifier"], size=5)
    place = network.bert.encoder.layer[0].output.dropout
    redraw(place)
    ones = torch.ones(100, 16, dtype=torch.double)
    torch.manual_seed(3)
    found = place(ones)
    torch.manual_seed(3)
    assert torch.equal(found, place.bottleneck(torch.nn.functional.dropout(ones, 0.5)))


@pytest.mark.parametrize(
    ("network", "head"),
    [
        (lambda: build_bert(), ["classifier"]),
        (lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES)), ["classifier"]),
        (lambda: ElectraForSequenceClassification(ElectraConfig(**SIZES, embedding_size=8)), ["classifier"]),
        (lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES)), ["classifier", "pooler"]),
        (
            lambda: DistilBertForSequenceClassification(
                DistilBertConfig(  # type: ignore[call-arg]
                    vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3
                )
            ),
            ["pre_classifier", "classifier"],
        ),
        (lambda: MPNetForSequenceClassification(MPNetConfig(**SIZES)), ["classifier"]),
    ],
    ids=["bert", "roberta", "electra", "deberta", "distilbert", "mpnet"],
)
def test_encoders_get_two_adapters_a_layer_and_train_nothing_else(network: Any, head: list[str], batch: Batch) -> None:
    encoder = network()
    names = {name for name, _ in encoder.named_parameters()}
    norms = {name for name in names if "LayerNorm" in name or "layer_norm" in name}
    paths = add_bottlenecks(encoder, head, size=5)
    assert len(paths) == 4
    trained = {name for name, value in encoder.named_parameters() if value.requires_grad}
    inside = {f"{path}.{part}.{kind}" for path in paths for part in ("down", "up") for kind in ("weight", "bias")}
    heads = {name for name in names if name.partition(".")[0] in head}
    assert trained == inside | norms | heads
    # The network's own names are as they were, and every adapter is on the way to the loss.
    assert {name for name, _ in encoder.named_parameters()} == names | inside
    encoder(**batch).loss.backward()
    assert all(encoder.get_parameter(name).grad.abs().max() > 0 for name in inside)


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_has_them_in_the_same_places_and_trains_nothing_else(tied: bool) -> None:
    torch.manual_seed(0)
    network: Any = build_llama(tied=tied).double().eval()
    names = {name for name, _ in network.named_parameters()}
    point = make_network("adapter", network, bottleneck_size=5)
    redraw(network)
    tokens = torch.randint(1, 50, (3, 7))
    core, positions = network.model, torch.arange(7)[None]
    hidden = core.embed_tokens(tokens)
    mask = torch.full((7, 7), -math.inf, dtype=torch.double).triu(1)[None, None]
    turned = core.rotary_emb(hidden, positions)
    for layer in core.layers:
        attention, mlp = layer.self_attn, layer.mlp
        # The adapter is called by hand on what comes without it.
        with without_adapters(network):
            found, _ = attention(layer.input_layernorm(hidden), turned, mask)
        hidden = hidden + attention.o_proj.bottleneck(found)
        with without_adapters(network):
            found = mlp(layer.post_attention_layernorm(hidden))
        hidden = hidden + mlp.down_proj.bottleneck(found)
    expected = network.lm_head(core.norm(hidden))
    torch.testing.assert_close(network(tokens).logits, expected, rtol=1e-10, atol=1e-10)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert point.new_modules == ()
    assert len(trained) == 2 * 2 * 4
    assert not trained & names
    network(tokens, labels=tokens).loss.backward()
    assert all(network.get_parameter(name).grad.abs().max() > 0 for name in trained)


def test_a_vit_has_them_in_the_same_places() -> None:
    """An adapter that adds a constant to everything adds it to the bias of the projection before it."""
    torch.manual_seed(0)
    sizes = {name: SIZES[name] for name in SIZES if name not in ("vocab_size", "max_position_embeddings")}
    base = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).double().eval()
    adapted = copy.deepcopy(base)
    paths = add_bottlenecks(adapted, ["classifier"], size=5)
    constants = torch.randn(4, 16, dtype=torch.double)
    # Two layouts: in transformers up to 5.6 a ViT is built as BERT is.
    projection = r"(attention\.output\.dense|output\.dense|attention\.o_proj|mlp\.fc2)\.bias$"
    biases = [name for name, _ in base.named_parameters() if re.search(projection, name)]
    assert len(biases) == len(paths) == 4
    with torch.no_grad():
        for path, bias, constant in zip(paths, biases, constants, strict=True):
            bottleneck: Any = adapted.get_submodule(path)
            bottleneck.up.weight.zero_()
            bottleneck.up.bias.copy_(constant)
            base.get_parameter(bias).add_(constant)
        pixels = torch.randn(2, 3, 8, 8, dtype=torch.double)
        torch.testing.assert_close(adapted(pixels).logits, base(pixels).logits, rtol=1e-10, atol=1e-10)
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    others = {name for name in trained if "bottleneck" not in name and "layernorm" not in name}
    assert others == {"classifier.weight", "classifier.bias"}
    assert any("layernorm" in name for name in trained)


def test_a_copy_has_adapters_of_its_own(batch: Batch) -> None:
    _, network = build_encoder()
    before = logits(network, batch)
    other = copy.deepcopy(network)
    redraw(other)
    assert torch.equal(logits(network, batch), before)
    assert not torch.equal(logits(other, batch), before)


def test_what_cannot_be_adapted_is_refused_and_left_alone() -> None:
    gpt2 = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(
        ConfigurationError,
        match=r"GPT2ForSequenceClassification has no layers of a known layout.*"
        r"Looked for modules whose paths end in layer\.N\.attention\.output\.dropout and layer\.N\.output\.dropout; "
        r".*Train it another way: lora, dora, adalora or full",
    ):
        add_bottlenecks(gpt2, ["score"])
    assert all(parameter.requires_grad for parameter in gpt2.parameters())
    network = build_bert()
    for options, message in (
        ({"head": ["absent"]}, r"BertForSequenceClassification has no module 'absent' to train in full"),
        ({"size": 0}, r"size=0 must be an integer >= 1"),
        ({"init_std": 0.0}, r"init_std=0\.0 must be positive"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            add_bottlenecks(network, **{"head": ["classifier"], **options})  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in network.parameters())
    add_bottlenecks(network, ["classifier"])
    with pytest.raises(AdapterError, match=r"has bottleneck adapters already\. Load the base model anew"):
        add_bottlenecks(network, ["classifier"])
