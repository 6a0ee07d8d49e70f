"""What it costs that several draws write a text together, beside the plain PEFT model that writes it alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import peft
import torch
from torch import Tensor

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.bench.cases import DECODER
from bayes_lora.experiments.bench.contenders import Entrant
from bayes_lora.experiments.bench.timing import Turn
from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.inference import MonteCLoRAGuide, generate
from bayes_lora.inference.finetuning.lora import lora_targets
from bayes_lora.inference.predictors.predictor import evaluation_mode
from bayes_lora.models import BayesianLoRA, CausalLanguageModel
from bayes_lora.randomness import seeded

ALONE = Entrant("lora", "PEFT LoRA, greedy")
_SEED = 0


def entrant(num_samples: int) -> Entrant:
    """Draws that write together."""
    return Entrant(f"generate_s{num_samples}", f"bayes_lora, generate, S = {num_samples}", ours=True)


def rows_entrant(num_rows: int) -> Entrant:
    """As many rows of the plain PEFT model: what is left of the cost of draws when their noise is taken away."""
    return Entrant(f"lora_rows{num_rows}", f"PEFT LoRA, greedy, {num_rows} rows")


@dataclass(frozen=True)
class Decode:
    """A prompt of random tokens and what is to follow, on SmolLM2 with LoRA on the attention.

    Attributes:
        tokens: of the prompt.
        new_tokens: that are written, all of them: no token ends the text.
        rank: of the adapters.
    """

    tokens: int
    new_tokens: int
    rank: int = 8

    def described(self) -> dict[str, int | str]:
        """What tells this case from others."""
        return {
            "batch": 1,
            "tokens": self.tokens,
            "new_tokens": self.new_tokens,
            "rank": self.rank,
            "adapters": len(self.pair[0].sites.adapters),
        }

    @cached_property
    def pair(self) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
        """Model and guide, loaded once for all who enter.

        Raises:
            BaseModelError: SmolLM2's package is not installed.
        """
        base = load_base_model(DECODER, (), "language_model").network
        targets = lora_targets(base, "attention")
        with seeded(_SEED, torch.device("cpu")):
            network: Any = peft.get_peft_model(
                base, peft.LoraConfig(task_type="CAUSAL_LM", r=self.rank, target_modules=targets)
            )
        network.generation_config.eos_token_id = None
        model = BayesianLoRA(network, MonteCLoRAConfig(), CausalLanguageModel())
        return model, MonteCLoRAGuide(model)

    @cached_property
    def prompt(self) -> Tensor:
        """(1, token)."""
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randint(1000, 40_000, (1, self.tokens), generator=generator)

    def alone(self, rows: int = 1) -> Callable[[], object]:
        """transformers' own greedy decoding of the plain PEFT model."""
        network: Any = self.pair[0].network
        batch = {"input_ids": self.prompt.repeat(rows, 1)}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])

        def write() -> None:
            with evaluation_mode(network):
                network.generate(**batch, max_new_tokens=self.new_tokens, do_sample=False, pad_token_id=0)

        return write

    def together(self, num_samples: int) -> Callable[[], object]:
        """So many draws."""
        model, guide = self.pair
        options: dict[str, Any] = {"num_samples": num_samples, "max_new_tokens": self.new_tokens}
        return lambda: generate(model, guide, self.prompt, **options)


def turn(write: Callable[[], object]) -> Turn:
    """A turn of a text that takes seconds: nothing is written untimed before it."""

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            write()
        return (time.perf_counter() - started) / steps

    return run
