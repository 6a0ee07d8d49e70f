"""What the contenders of the bench are measured on: networks, their adapters and batches."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import peft
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, RobertaConfig

from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.inference.finetuning.lora import lora_targets
from bayes_lora.randomness import seeded

Batch = dict[str, Tensor]
Shape = Literal["base", "deep", "roberta"]
DECODER = "smollm2"  # of suites about language models, whatever the base model of the others
_SEED = 0
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A network with LoRA adapters, and the batch it sees.

    Attributes:
        base: the base model, as ``--base-model`` takes it.
        batch: examples.
        tokens: of each example.
        rank: of the adapters.
        targets: "attention" adapts query, key and value; "linear" every linear layer of the blocks.
        shape: "base" is the base model; "deep" its configuration with twice the blocks and random weights;
            "roberta" the configuration of RoBERTa-base with random weights, whatever the base.
        device: "cpu" or "cuda".
    """

    base: str = "minilm"
    batch: int = 8
    tokens: int = 32
    rank: int = 8
    targets: Literal["attention", "linear"] = "attention"
    shape: Shape = "base"
    device: str = "cpu"

    def described(self) -> dict[str, int | str]:
        """What tells this case from the others of a bench: base model and device are said once for all."""
        return {
            "batch": self.batch,
            "tokens": self.tokens,
            "rank": self.rank,
            "adapters": len(target_paths(self)),
            "shape": self.shape,
        }


@cache
def loaded_base(base: str, shape: Shape) -> PreTrainedModel:
    """The base network on the CPU, of which every contender gets a copy; `loaded_base.cache_clear` frees it."""
    if shape == "roberta":
        # The numbers in which the published checkpoint differs from the defaults of its configuration.
        config: Any = RobertaConfig(  # type: ignore[call-arg]
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=2
        )
        return _random(config)
    with seeded(_SEED, _CPU):  # a new head is drawn at random
        network = load_base_model(base, ("no", "yes")).network
    if shape == "deep":
        config = copy.deepcopy(network.config)
        config.num_hidden_layers *= 2
        return _random(config)
    return network


def _random(config: Any) -> PreTrainedModel:
    with seeded(_SEED, _CPU):
        network: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return network


def plain_network(case: Case) -> nn.Module:
    """A copy of the base network without adapters, in training mode."""
    network: nn.Module = copy.deepcopy(loaded_base(case.base, case.shape))
    return network.to(case.device).train()


def target_paths(case: Case) -> list[str]:
    """Paths of the modules that get an adapter."""
    base = loaded_base(case.base, case.shape)
    linears = [path for path, module in base.named_modules() if isinstance(module, nn.Linear)]
    if case.targets == "attention":
        names = lora_targets(base, "attention")
        return [path for path in linears if path.rpartition(".")[2] in names]
    # The layers of a block have its number in their path; pooler and head have none.
    return [path for path in linears if any(part.isdigit() for part in path.split("."))]


def lora_network(case: Case, **options: Any) -> Any:
    """A copy of the base network with LoRA, the same for the same case; `options` go to peft.LoraConfig."""
    network = plain_network(case)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=case.rank, lora_alpha=2 * case.rank, target_modules=target_paths(case), **options
    )
    with seeded(_SEED, _CPU):
        return peft.get_peft_model(network, config).to(case.device).train()


def make_batch(case: Case) -> Batch:
    """Random tokens without padding, and labels of two classes."""
    generator = torch.Generator().manual_seed(_SEED)
    vocabulary: int = loaded_base(case.base, case.shape).config.vocab_size
    # The first ids are for padding and the like; RoBERTa counts positions by them.
    tokens = torch.randint(min(1000, vocabulary // 2), vocabulary, (case.batch, case.tokens), generator=generator)
    batch = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.arange(case.batch) % 2,
    }
    return {name: value.to(case.device) for name, value in batch.items()}


def adapter_bank(num_adapters: int, width: int, rank: int) -> Any:
    """Linears of this input width side by side, with LoRA on each: adapters alone, without a network around them."""
    with seeded(_SEED, _CPU):
        bank = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(width, 1) for _ in range(num_adapters))})
        return peft.get_peft_model(bank, peft.LoraConfig(r=rank, target_modules=r"layers\.\d+"))
