"""The Trainer with checkpoints that are known to be whole, and runs that resume to the same end."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from bayes_lora.inference.checkpoints import newest_whole, require_whole, seal


class SealedTrainer(Trainer):
    """`transformers.Trainer` whose checkpoints carry checksums of their files, written last."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with True, from the newest whole checkpoint in `args.output_dir`, or from the start if there is none.

        Raises:
            CheckpointFileError: the checkpoint named is cut short or damaged.
        """
        if resume_from_checkpoint is True:
            newest = newest_whole(Path(str(self.args.output_dir)))
            resume_from_checkpoint = None if newest is None else str(newest)
        elif resume_from_checkpoint:
            require_whole(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save:
            seal(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with the global generators as they were afterwards.

        A data loader draws its seed from them, so that a run which evaluates would differ from one resumed after it.
        """
        with torch.random.fork_rng(devices=[self.args.device] if self.args.device.type == "cuda" else []):
            return super().evaluation_loop(*args, **kwargs)
