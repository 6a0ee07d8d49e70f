"""What happens between the steps of an `SVITrainer`."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from bayes_lora.inference.randomness import stream
from bayes_lora.inference.svi_module import SVIModule


class OwnDraws(TrainerCallback):
    """Gives each process posterior draws of its own.

    The Trainer seeds all processes alike; with the same draws everywhere, more processes would not make the gradient
    any less noisy. The generators of a resumed run are loaded after this.
    """

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.manual_seed(stream(args.seed, args.process_index))


class MoveScale(TrainerCallback):
    """Sets the sample scale before every step; with the last one the schedule is complete."""

    def __init__(self, svi: SVIModule) -> None:
        self._svi = svi

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._svi.schedule is not None
        self._svi.schedule.apply_to(self._svi.model, (state.global_step + 1) / state.max_steps)
