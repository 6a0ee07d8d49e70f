"""What it costs to score the options of a question, which runs once for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import peft
import torch
from torch import Tensor

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.bench.contenders import Entrant
from bayes_lora.experiments.bench.timing import Turn, timed
from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.inference.finetuning.lora import lora_targets
from bayes_lora.models import BayesianLoRA, MultipleChoice
from bayes_lora.models.likelihoods.option_passes import OPTIONS
from bayes_lora.randomness import seeded

ONE = Entrant("one_option", "PEFT LoRA, one option")
APART = Entrant("options_apart", "PEFT LoRA, each option behind its question")
SHARED = Entrant("options_shared", "bayes_lora, options behind one question", ours=True)
_SEED = 0


@dataclass(frozen=True)
class Question:
    """A question of random tokens with options of random tokens, on a causal language model with LoRA.

    Attributes:
        base_model: as ``--base-model`` takes it.
        tokens: of the question.
        options: of it.
        option_tokens: of each.
        rank: of the adapters.
    """

    base_model: str
    tokens: int = 64
    options: int = 4
    option_tokens: int = 8
    rank: int = 8

    def described(self) -> dict[str, int | str]:
        """What tells this case from others."""
        return {
            "batch": 1,
            "tokens": self.tokens,
            "options": self.options,
            "option_tokens": self.option_tokens,
            "rank": self.rank,
            "adapters": len(self.model.sites.adapters),
        }

    @cached_property
    def model(self) -> BayesianLoRA:
        """Loaded once for all who enter.

        Raises:
            BaseModelError: it cannot be loaded, or is no causal language model.
        """
        base = load_base_model(self.base_model, (), "multiple_choice").network
        targets = lora_targets(base, "attention")
        with seeded(_SEED, torch.device("cpu")):
            network = peft.get_peft_model(
                base, peft.LoraConfig(task_type="CAUSAL_LM", r=self.rank, target_modules=targets)
            )
        return BayesianLoRA(network.eval(), MonteCLoRAConfig(), MultipleChoice())

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """One row."""
        generator = torch.Generator().manual_seed(_SEED)
        network: Any = self.model.network
        most = network.config.vocab_size
        shapes = {"input_ids": (1, self.tokens), OPTIONS: (1, self.options, self.option_tokens)}
        return {name: torch.randint(1, most, shape, generator=generator) for name, shape in shapes.items()}

    def turns(self) -> dict[str, Turn]:
        """Of all who enter, by name."""
        options = self.batch[OPTIONS][0]
        ways: dict[str, Callable[[], Tensor]] = {
            ONE.name: lambda: self.alone(options[:1]),
            APART.name: lambda: self.alone(options),
            SHARED.name: lambda: self.model.network_logits(self.batch)[0],
        }
        return {name: timed(torch.no_grad()(way)) for name, way in ways.items()}

    def alone(self, options: Tensor) -> Tensor:
        """ln p of options (option, token), each behind a copy of the question, by what transformers offers."""
        tokens = torch.cat([self.batch["input_ids"].expand(len(options), -1), options[:, :-1]], dim=1)
        network: Any = self.model.network
        logits = network(input_ids=tokens, use_cache=False, logits_to_keep=options.shape[1]).logits
        picked = logits.gather(-1, options.unsqueeze(-1)).squeeze(-1)
        return (picked - logits.logsumexp(-1)).sum(-1)  # type: ignore[no-any-return]
