"""Small language models, and rows for them."""

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import bayes_lora as bl
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA, CausalLanguageModel, Likelihood
from tests.networks import build_llama

_SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
_HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
_SAME: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
_SOME_SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
_FEW: dict[str, Any] = {"max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
NETWORKS: dict[str, Callable[[], Any]] = {
    "llama": build_llama,
    "llama, tied": lambda: build_llama(tied=True),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SMALL, **_HEADS, **_FEW)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_SMALL, **_HEADS, **_FEW, sliding_window=4)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SMALL, **_HEADS, **_FEW, sliding_window=4)),
}


_OTHERS: dict[str, Callable[[], Any]] = {
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_SMALL, **_HEADS, **_FEW)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SMALL, **_HEADS, **_FEW, sliding_window=4)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**_SMALL, **_SAME, **_FEW)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SMALL, **_SAME, **_FEW, sliding_window=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SMALL, **_SAME, **_FEW, **_SOME_SLIDING)),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**_SMALL, **_SAME, **_FEW)),
}
SHARING_NETWORKS = {**NETWORKS, **_OTHERS}


def pair_of(
    name: str, dtype: torch.dtype = torch.double, likelihood: Likelihood | None = None, **config: Any
) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    torch.manual_seed(0)
    base = SHARING_NETWORKS[name]()
    base.config.attention_dropout = base.config.attn_pdrop = base.config.resid_pdrop = base.config.embd_pdrop = 0.0
    targets = {"gpt2": ["c_attn"], "phi3": ["qkv_proj"]}.get(name, ["q_proj", "v_proj"])
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, fan_in_fan_out=name == "gpt2")
    network = peft.get_peft_model(base, lora).to(dtype).eval()
    for parameter_name, parameter in network.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    settings = bl.MonteCLoRAConfig(**{"sample_scale": 0.2, **config})
    model = BayesianLoRA(network, settings, likelihood or CausalLanguageModel())
    return model, MonteCLoRAGuide(model)


def texts(count: int = 5) -> list[list[int]]:
    """Rows of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 50, (4 + 2 * row,), generator=generator).tolist() for row in range(count)]


def padded(rows: list[list[int]], side: str, prompt: int = 2) -> dict[str, Tensor]:
    """A batch whose first `prompt` tokens of each row are no labels."""
    width = max(map(len, rows))
    found: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        missing = width - len(row)
        for key, values, pad in (
            ("input_ids", row, 0),
            ("attention_mask", [1] * len(row), 0),
            ("labels", [-100] * prompt + row[prompt:], -100),
        ):
            found[key].append([pad] * missing + values if side == "left" else values + [pad] * missing)
    return {key: torch.tensor(values) for key, values in found.items()}


class Collator:
    """Pads on the right, as a tokenizer's collator would."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return padded([row["input_ids"] for row in rows], "right", prompt=0) | {
            "labels": torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row["labels"]) for row in rows], batch_first=True, padding_value=-100
            )
        }


def unequal_rows(count: int = 8) -> list[dict[str, Any]]:
    """Labels of 1, 3, 5, ... tokens; what each row brings to the loss is not what it counts for."""
    return [
        {"input_ids": ids, "labels": [-100] * 3 + ids[3:], "attention_mask": [1] * len(ids)} for ids in texts(count)
    ]
