"""The Trainer with checkpoints that are known to be whole, and runs that resume to the same end."""

from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from bayes_lora.checks import require_choice, require_positive
from bayes_lora.choices import WeightDecayOf
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.storage.checkpoints import newest_whole, require_whole, seal
from bayes_lora.inference.training.length_groups import LengthGroups
from bayes_lora.inference.training.own_groups import give_learning_rate, head_parameters, lora_a_parameters
from bayes_lora.models import TrainedModule
from bayes_lora.running_statistics import hold, with_running_statistics


class SealedTrainer(Trainer):
    """`transformers.Trainer` whose checkpoints carry checksums of their files, written last.

    Batch normalization keeps the statistics of the base model, see `with_running_statistics`.

    Args:
        model: the network, or a module that holds it.
        args: TrainingArguments.
        head_learning_rate: see `FitOptions`.
        weight_decay_of: the same.
        kwargs: the Trainer's own.

    Raises:
        ConfigurationError: a value outside its domain; from `train`, head_learning_rate of a network without a head.
    """

    _held: list[nn.Module] | None = None

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        *,
        head_learning_rate: float | None = None,
        weight_decay_of: WeightDecayOf = "all",
        **kwargs: Any,
    ) -> None:
        if head_learning_rate is not None:
            require_positive("head_learning_rate", head_learning_rate)
        require_choice("weight_decay_of", weight_decay_of, get_args(WeightDecayOf))
        self.head_learning_rate, self.weight_decay_of = head_learning_rate, weight_decay_of
        super().__init__(model, args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's, with the head at a learning rate of its own where it has one."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.head_learning_rate is not None:
            head = [] if self.model is None else head_parameters(self.model)
            if not head:
                raise ConfigurationError(
                    f"head_learning_rate={self.head_learning_rate} is of the task head, and nothing outside of the "
                    "transformer and its adapters is trained. Leave it out, or name the head in modules_to_save of "
                    "LoraConfig."
                )
            give_learning_rate(optimizer, head, self.head_learning_rate)
        return optimizer

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Names of the parameters that have weight decay."""
        names: list[str] = super().get_decay_parameter_names(model)
        if self.weight_decay_of == "all":
            return names
        left_out = lora_a_parameters(model) if self.weight_decay_of == "b_and_head" else head_parameters(model)
        known = set(map(id, left_out))
        kept = {name for name, parameter in model.named_parameters() if id(parameter) in known}
        return [name for name in names if name not in kept]

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, which has put the whole network in training mode just before."""
        if self._held is None:
            self._held = with_running_statistics(model)
        hold(self._held)
        return super().compute_loss(model, *args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, on from a checkpoint where one is given.

        Args:
            resume_from_checkpoint: a checkpoint; a folder with checkpoints, of which the newest whole one counts; or
                True for those in `args.output_dir`, where training starts anew if there is none.
            args, kwargs: the Trainer's.

        Raises:
            CheckpointFileError: the checkpoint is cut short or damaged, or none in the folder is whole.
        """
        if resume_from_checkpoint in (True, "True"):  # the latter as a script's command line gives it
            newest = newest_whole(Path(str(self.args.output_dir)))
            resume_from_checkpoint = None if newest is None else str(newest)
        elif resume_from_checkpoint:
            named = Path(str(resume_from_checkpoint))
            chosen = newest_whole(named) or named
            require_whole(chosen)
            resume_from_checkpoint = str(chosen)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        if type(sampler) is not LengthGroupedSampler:
            return sampler
        # transformers' own draws from the global generator: a run resumed within an epoch would see other batches.
        return LengthGroups(sampler.lengths, sampler.batch_size, int(self.args.data_seed or self.args.seed))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save:
            seal(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if isinstance(self.model, TrainedModule):
            # Checkpoints of it hold what is trained; the frozen base is missing there by design.
            trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
            load_result.missing_keys[:] = [name for name in load_result.missing_keys if name in trained]
        super()._issue_warnings_after_load(load_result)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if isinstance(self.model, TrainedModule):  # whose own signature takes any batch
            self._signature_columns: Any = self.model.batch_columns

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with the global generators as they were afterwards.

        A data loader draws its seed from them, so that a run which evaluates would differ from one resumed after it.
        """
        with torch.random.fork_rng(devices=[self.args.device] if self.args.device.type == "cuda" else []):
            return super().evaluation_loop(*args, **kwargs)
