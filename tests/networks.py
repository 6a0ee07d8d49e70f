"""Small random networks that the tests share, and the exact values they are compared with."""

import json
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import bayes_lora as bl
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA

Batch = dict[str, torch.Tensor]

CLOSED_FORMS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "closed_forms.json").read_text(encoding="utf-8")
)["cases"]


def build_bert(num_layers: int = 2, num_labels: int = 3, dropout: float = 0.0) -> BertForSequenceClassification:
    """A random BERT classifier: width 16, feed-forward width 24, 50 tokens."""
    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        num_labels=num_labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def build_llama(*, tied: bool = False, vocab_size: int = 50, max_positions: int = 32) -> LlamaForCausalLM:
    """A random LLaMA of two layers: width 16, feed-forward width 24."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def build_network(
    *, seed: int = 0, num_layers: int = 2, dtype: torch.dtype = torch.float64, dropout: float = 0.0, **lora: Any
) -> peft.PeftModel:
    """That BERT in float64 with LoRA; B is not zero, so that A matters, and with DoRA neither are outputs small."""
    torch.manual_seed(seed)
    options = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]} | lora
    network = peft.get_peft_model(build_bert(num_layers, dropout=dropout), peft.LoraConfig(**options)).to(dtype)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "lora_magnitude_vector" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return network.eval()


def make_batch() -> Batch:
    """Five rows of seven tokens, the last one padded, with labels of three classes."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(5, 7, dtype=torch.long)
    mask[-1, 4:] = 0
    return {
        "input_ids": torch.randint(1, 50, (5, 7), generator=generator),
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 2, 0, 1]),
    }


def learnable_rows(count: int = 48) -> list[dict[str, Any]]:
    """The label is the third of the vocabulary that all of a row's tokens come from."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        tokens = 1 + 16 * (i % 3) + torch.randint(0, 15, (6,), generator=generator)
        rows.append({"input_ids": tokens.tolist(), "attention_mask": [1] * 6, "labels": i % 3})
    return rows


def build_pair(network: peft.PeftModel | None = None, **config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """Model and guide on a small network, alpha and v moved away from the prior."""
    model = BayesianLoRA(build_network() if network is None else network, bl.MonteCLoRAConfig(**config))
    guide = MonteCLoRAGuide(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model, guide


class Bank(torch.nn.Module):
    """Linears side by side, one for each given input width: many adapters at little cost."""

    def __init__(self, widths: list[int], out_features: int = 2) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, out_features) for width in widths)


def build_bank(
    widths: list[int], rank: int, out_features: int = 2, dtype: torch.dtype = torch.float64, **lora: Any
) -> peft.PeftModel:
    """A `Bank` with LoRA on every layer; it has no forward pass, only adapters."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=rank, target_modules=r"layers\.\d+", **lora)
    return peft.get_peft_model(Bank(widths, out_features), config).to(dtype)
