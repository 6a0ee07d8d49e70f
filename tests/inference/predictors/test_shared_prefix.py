"""Blocks below the first adapter run once a batch, and the prediction is the same."""

from typing import Any

import peft
import pytest
import torch
from transformers import T5Config, T5ForSequenceClassification

import bayes_lora.inference.predictors.posterior_passes as posterior_passes
from bayes_lora.inference import predict
from bayes_lora.inference.predictors.shared_prefix import SharedPrefix
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, build_pair


def upper(num_layers: int = 4, first: int = 2, **options: Any) -> Any:
    """Adapters in the blocks from `first` up only; alpha, v and the scale are such that the noise matters."""
    layers = list(range(first, num_layers))
    return build_pair(build_network(num_layers=num_layers, layers_to_transform=layers, **options), sample_scale=0.3)


def blocks(model: BayesianLoRA) -> Any:
    return model.network.base_model.model.bert.encoder.layer  # type: ignore[union-attr]


def calls(model: BayesianLoRA) -> list[int]:
    """How often each block is run from now on."""
    counts = [0] * 4

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    # On a part of each block, since a block that is passed over is still called.
    for index, block in enumerate(blocks(model)):
        block.attention.register_forward_hook(count(index))
    return counts


@pytest.mark.parametrize("draws_per_pass", [1, 2, 5, None])
def test_predictions_are_those_of_whole_passes(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, draws_per_pass: int | None
) -> None:
    model, guide = upper()
    found = predict(model, guide, [batch, batch], num_samples=5, draws_per_pass=draws_per_pass)
    monkeypatch.setattr(SharedPrefix, "of", lambda model: None)
    expected = predict(model, guide, [batch, batch], num_samples=5, draws_per_pass=draws_per_pass)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
    assert expected.logits.std(0).max() > 1e-3


def test_lower_blocks_run_once_a_batch(batch: Batch) -> None:
    model, guide = upper()
    counts = calls(model)
    predict(model, guide, [batch, batch], num_samples=5, draws_per_pass=1)
    assert counts == [2, 2, 10, 10]
    predict(model, guide, [batch], num_samples=1, draws_per_pass=1)  # nothing to share
    assert counts == [3, 3, 11, 11]


def test_the_network_is_left_as_it_was(batch: Batch) -> None:
    model, guide = upper()
    before = model.network_logits({name: value for name, value in batch.items() if name != "labels"})
    predict(model, guide, [batch], num_samples=3)
    after = model.network_logits({name: value for name, value in batch.items() if name != "labels"})
    assert torch.equal(before, after)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())
    assert not any("forward" in block.__dict__ for block in blocks(model))


def test_an_error_in_a_pass_leaves_it_so_too(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = upper()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(posterior_passes, "noisy_logits", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(model, guide, [batch], num_samples=3, draws_per_pass=1)
    assert not any("forward" in block.__dict__ for block in blocks(model))


def test_where_the_first_block_is_adapted_nothing_is_shared() -> None:
    model, _ = build_pair(build_network(num_layers=2))
    assert SharedPrefix.of(model) is None


def test_blocks_with_a_forward_pass_of_somebody_elses_are_left_alone() -> None:
    model, _ = upper()
    block = blocks(model)[0]
    block.forward = block.forward  # as libraries that wrap modules do
    assert SharedPrefix.of(model) is None


def test_blocks_that_somebody_hooked_are_left_alone(batch: Batch) -> None:
    model, guide = upper()
    blocks(model)[1].register_forward_hook(lambda *arguments: 1.5 * arguments[2])  # steers what the upper ones see
    assert SharedPrefix.of(model) is None
    predict(model, guide, [batch], num_samples=2)


def test_blocks_run_in_another_order_are_not_shared(batch: Batch) -> None:
    model, _ = upper()
    prefix = SharedPrefix.of(model)
    assert prefix is not None
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    assert prefix.outputs(lambda: model.network_logits(inputs)) is not None
    turned = SharedPrefix(prefix.below[::-1], prefix.first_adapted)
    assert turned.outputs(lambda: model.network_logits(inputs)) is None
    skipping = SharedPrefix(prefix.below[:1], prefix.first_adapted)  # its output goes elsewhere first
    assert skipping.outputs(lambda: model.network_logits(inputs)) is None
    never = SharedPrefix(prefix.below, torch.nn.Identity())
    assert never.outputs(lambda: model.network_logits(inputs)) is None


def test_what_blocks_hand_on_by_the_side_is_kept(batch: Batch) -> None:
    """T5's first block also makes the position bias of all others; encoder and decoder have a list of blocks each."""
    torch.manual_seed(0)
    config = T5Config(  # type: ignore[call-arg]
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=3, num_heads=2, num_labels=3,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=r".*decoder\.block\.2\..*\.(q|v)")
    network = peft.get_peft_model(T5ForSequenceClassification(config), lora).double()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model, guide = build_pair(network.eval(), sample_scale=0.3)
    prefix = SharedPrefix.of(model)
    assert prefix is not None
    assert len(prefix.below) == 2
    inputs = {**batch, "input_ids": batch["input_ids"].clamp_min(2)}
    inputs["input_ids"][:, -1] = 1  # T5 classifies at the end of the sentence
    found = predict(model, guide, [inputs], num_samples=3, draws_per_pass=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedPrefix, "of", lambda model: None)
        expected = predict(model, guide, [inputs], num_samples=3, draws_per_pass=1)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-10, atol=1e-10)
    assert expected.logits.std(0).max() > 1e-4
