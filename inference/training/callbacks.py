"""What happens between the steps of training."""

from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from bayes_lora.inference.training.svi_module import SVIModule
from bayes_lora.randomness import Part, stream


class OwnDraws(TrainerCallback):
    """Gives each process posterior draws of its own.

    The Trainer seeds all processes alike; with the same draws everywhere, more processes would not make the gradient
    any less noisy. The generators of a resumed run are loaded after this.
    """

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.manual_seed(stream(Part.NOISE.seed(args.seed), args.process_index))


class MoveScale(TrainerCallback):
    """Sets the sample scale before every step; with the last one the schedule is complete."""

    def __init__(self, svi: SVIModule) -> None:
        self._svi = svi

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._svi.schedule is not None
        self._svi.schedule.apply_to(self._svi.model, (state.global_step + 1) / state.max_steps)


class Clock(TrainerCallback, ExportableState):
    """Wall-clock seconds of training. Checkpoints hold them, and a resumed run adds its own to those of the checkpoint
    that it goes on from; steps that were lost with a killed run do not count."""

    def __init__(self) -> None:
        self._before, self._started = 0.0, perf_counter()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + perf_counter() - self._started

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0 and "Clock" in state.stateful_callbacks:  # it resumes
            self._before = state.stateful_callbacks["Clock"]["attributes"]["seconds"]
