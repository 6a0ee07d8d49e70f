"""Base models in 4 and 8 bits (bitsandbytes): the noise is not skipped, and gradients are those of the same weights in
float32."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForSequenceClassification, TrainingArguments

import bayes_lora as bl
from bayes_lora.adapters import unwrap
from bayes_lora.errors import AdapterError, CheckpointingError, PosteriorFileError, UnsupportedAdapterError
from bayes_lora.inference import (
    FitOptions,
    ItemizedELBO,
    MonteCLoRAGuide,
    SVITrainer,
    fit,
    load_posterior,
    predict,
    save_posterior,
)
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_pair

bnb = pytest.importorskip("bitsandbytes", reason="pip install 'bayes-lora[quantized]' would run these")

QUANTIZED: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    # Above the threshold, one row's outlier would change how all rows of its batch are multiplied.
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}
# Both sides multiply by the same dequantized weights in float32; sums over at most 128 terms may run in another order,
# in 14 products after each other and as many in the backward pass: 28 * sqrt(128) * 2^-24 = 2e-5 of the largest value.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaMA on disk, as a hub model would be."""
    torch.manual_seed(0)
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=50,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=3,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def load(checkpoint: Path, kind: str | None) -> Any:
    quantization = BitsAndBytesConfig(**QUANTIZED[kind]) if kind else None
    network = LlamaForSequenceClassification.from_pretrained(checkpoint, quantization_config=quantization)
    torch.manual_seed(1)
    nn.init.normal_(network.score.weight, std=0.1)  # the head is what a checkpoint of a base model lacks
    return network


def with_lora(base: Any, **options: Any) -> Any:
    torch.manual_seed(2)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj", "down_proj"], **options)
    network = peft.get_peft_model(base, lora)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)  # at zero, A would not matter
    return network


def pair(checkpoint: Path, kind: str | None) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    return build_pair(with_lora(load(checkpoint, kind)), sample_scale=0.2)


def loss_and_gradients(model: BayesianLoRA, guide: MonteCLoRAGuide, batch: Batch) -> dict[str, Tensor]:
    """The loss, and its gradient for mu, B, the head, alpha and v, always with the same draws of the posterior."""
    model.train()
    model.zero_grad()
    guide.zero_grad()
    torch.manual_seed(3)
    loss = ItemizedELBO().differentiable_loss(model, guide, **batch)
    loss.backward()
    named = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
    return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in named.items() if p.grad is not None}}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of any entry, as a part of its tensor's largest value."""
    assert first.keys() == second.keys()
    return max(float((first[n] - second[n]).abs().max() / second[n].abs().max()) for n in first)


@pytest.mark.shows("quantization", "works", {"fp4": "4 bits (FP4)", "nf4 twice": "4 bits, scales quantized in turn"})
@pytest.mark.parametrize("kind", QUANTIZED)
def test_gradients_are_those_on_the_dequantized_base(checkpoint: Path, batch: Batch, kind: str) -> None:
    base = load(checkpoint, kind)
    dequantized = copy.deepcopy(base).dequantize().float()
    model, guide = build_pair(with_lora(base), sample_scale=0.2)
    layer = "Linear8bitLt" if kind == "int8" else "Linear4bit"
    assert {type(adapter.layer).__name__ for adapter in model.sites.adapters} == {layer}
    expected = loss_and_gradients(*build_pair(with_lora(dequantized), sample_scale=0.2), batch)
    assert distance(loss_and_gradients(model, guide, batch), expected) < TOLERANCE
    for skipped in range(len(model.sites.names)):  # one layer without noise is enough to be told apart
        scale = torch.full_like(model.sample_scale, 0.2)
        scale[skipped] = 0
        model.set_sample_scale(scale)
        silent = loss_and_gradients(model, guide, batch)
        assert distance(silent, expected) > 1e3 * TOLERANCE
        assert abs(silent["loss"] - expected["loss"]) > 1e2 * TOLERANCE
    original = loss_and_gradients(*pair(checkpoint, None), batch)
    assert distance(original, expected) > 1e3 * TOLERANCE  # so is the base before its quantization


@pytest.mark.shows("quantization", "works", "DoRA on 4 bits")
@pytest.mark.parametrize("kind", [kind for kind in QUANTIZED if kind != "int8"])
def test_dora_has_the_norms_of_the_dequantized_base(checkpoint: Path, batch: Batch, kind: str) -> None:
    base = load(checkpoint, kind)
    dequantized = copy.deepcopy(base).dequantize().float()
    found = build_pair(with_lora(base, use_dora=True), sample_scale=0.2)
    expected = build_pair(with_lora(dequantized, use_dora=True), sample_scale=0.2)
    assert distance(loss_and_gradients(*found, batch), loss_and_gradients(*expected, batch)) < TOLERANCE
    together, one_by_one = (predict(*found, [batch], num_samples=4, draws_per_pass=draws).logits for draws in (None, 1))
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.shows("quantization", "refused", "DoRA on 8 bits, on a CPU")
def test_dora_of_8_bits_is_refused_on_the_cpu(checkpoint: Path, batch: Batch) -> None:
    network = with_lora(load(checkpoint, "int8"), use_dora=True)
    with pytest.raises(UnsupportedAdapterError, match=r"q_proj: DoRA on an 8-bit base .*load_in_4bit.*use_dora"):
        build_pair(network)
    # The reason: once this no longer fails, the refusal can go.
    network(**batch)
    with pytest.raises(AttributeError, match="NoneType"):
        network(**batch)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_likelihood_reaches_v_and_alpha(checkpoint: Path, batch: Batch, kind: str) -> None:
    model, guide = build_pair(with_lora(load(checkpoint, kind)), sample_scale=0.2, kl_weight=0, cooperative_weight=0)
    gradients = loss_and_gradients(model, guide, batch)
    assert (gradients["scale_r4_unconstrained"].abs() > 1e-6).all()
    assert (gradients["concentration_unconstrained"].abs() > 1e-6).all()
    model.set_sample_scale(0.0)  # where the noise is skipped, nothing arrives
    silent = loss_and_gradients(model, guide, batch)
    assert not silent["scale_r4_unconstrained"].any()
    assert not silent["concentration_unconstrained"].any()


# peft 0.21 asks transformers 5.23 by a name that 6.0 drops, and leaves the kind of checkpointing to torch's default
@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning",
    "ignore:torch.utils.checkpoint. the use_reentrant parameter should be passed:UserWarning",
)
@pytest.mark.parametrize("options", [{}, {"use_reentrant": True}, {"use_reentrant": False}])
def test_prepared_for_kbit_training(checkpoint: Path, batch: Batch, options: dict[str, bool]) -> None:
    base = peft.prepare_model_for_kbit_training(load(checkpoint, "nf4"), gradient_checkpointing_kwargs=options)
    model, guide = build_pair(with_lora(base), sample_scale=0.2)
    if options.get("use_reentrant", True):
        with pytest.raises(CheckpointingError, match=r"'use_reentrant': False"):
            loss_and_gradients(model, guide, batch)
        return
    calls: list[int] = []
    model.sites.adapters[0].linear.register_forward_hook(lambda *_: calls.append(1))
    gradients = loss_and_gradients(model, guide, batch)
    assert len(calls) == 2  # once more in the backward pass
    assert distance(gradients, loss_and_gradients(*pair(checkpoint, "nf4"), batch)) < TOLERANCE


def rows() -> list[dict[str, Any]]:
    tokens = torch.randint(1, 50, (24, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[0]) % 3} for row in tokens]


def base_weights(model: BayesianLoRA) -> dict[str, Tensor]:
    return {
        name: dequantize_bnb_weight(module.weight, getattr(module, "state", None)).clone()
        for name, module in model.network.named_modules()
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    }


@pytest.mark.shows("quantization", "works", {"nf4": "4 bits (bitsandbytes NF4)", "int8": "8 bits (bitsandbytes)"})
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_train_evaluate_save_and_load(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    model, guide = pair(checkpoint, kind)
    before = base_weights(model)
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        num_train_epochs=2,
        learning_rate=1e-2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = SVITrainer(model, guide, arguments, num_samples=2, train_dataset=rows(), eval_dataset=rows())
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 6
    assert torch.isfinite(torch.tensor(logged)).all()
    fit(model, guide, rows(), FitOptions(epochs=1, batch_size=8))
    loader = torch.utils.data.DataLoader(rows(), batch_size=8)  # type: ignore[arg-type,var-annotated]
    prediction = predict(model, guide, loader, num_samples=4)
    assert prediction.logits.std(0).max() > 1e-3  # the noise reaches the output
    one_by_one = predict(model, guide, loader, num_samples=4, draws_per_pass=1)
    torch.testing.assert_close(prediction.logits, one_by_one.logits, rtol=1e-4, atol=1e-5)
    save_posterior(model, guide, tmp_path / "posterior")
    after = base_weights(model)
    assert len(after) == 14
    assert all(torch.equal(after[name], before[name]) for name in before)

    loaded = predict(*load_posterior(load(checkpoint, kind), tmp_path / "posterior"), loader, num_samples=4)
    assert torch.equal(loaded.logits, prediction.logits)
    for other in {None, *QUANTIZED} - {kind}:
        with pytest.raises(PosteriorFileError, match=r"saved for another base model than this LlamaFor"):
            load_posterior(load(checkpoint, other), tmp_path / "posterior")


@pytest.mark.shows("quantization", "refused", "a posterior on its base in another precision")
def test_a_posterior_for_the_float_base_is_refused_on_a_quantized_one(checkpoint: Path, tmp_path: Path) -> None:
    folder = save_posterior(*pair(checkpoint, None), tmp_path / "posterior")
    for kind in ("nf4", "int8"):
        with pytest.raises(PosteriorFileError, match=r"saved for another base model than this LlamaFor"):
            load_posterior(load(checkpoint, kind), folder)


@pytest.mark.skipif(
    not bnb.functional.has_avx512bf16(), reason="a CPU with AVX512-BF16, where bitsandbytes repacks, would run this"
)
def test_weights_repacked_for_inference_are_refused(checkpoint: Path, batch: Batch) -> None:
    network = with_lora(load(checkpoint, "nf4")).eval()
    network(**batch)  # some layers only: those whose input needs no gradient
    with pytest.raises(
        AdapterError, match=r"^base_model.*q_proj\.base_layer\.weight: bitsandbytes has repacked .* Load the base"
    ):
        BayesianLoRA(network, bl.MonteCLoRAConfig())

    model, _ = pair(checkpoint, "nf4")
    with torch.no_grad():
        model.eval().network(**batch)
        assert base_weights(model)
        plain = unwrap(model.network)
        plain(**batch)
    with pytest.raises(AdapterError, match="bitsandbytes has repacked"):  # the network is what it was
        BayesianLoRA(plain, bl.MonteCLoRAConfig())
