"""What a training run collects for SWAG."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from bayes_lora.checks import require_count
from bayes_lora.errors import CheckpointFileError, ConfigurationError
from bayes_lora.files import read_json, sha256_of, write_whole
from bayes_lora.inference.predictors.ensemble import State, trainable_state
from bayes_lora.inference.predictors.swag import SWAG
from bayes_lora.precision import posterior_dtype
from bayes_lora.sealed_files import Format

_FOLDER, _INDEX_FILE = "swag", "iterates.json"  # in the Trainer's output_dir


class SWAGCollector(TrainerCallback):
    """Collects the iterates of a run for `SWAG`: give it to a Trainer, or call `collect` in a loop of your own.

    Moments are kept by Welford's updates, in float32 or better: ``mean(theta^2) - mean(theta)^2`` would lose the
    variance of iterates that differ little.

    The iterates should come from a learning rate that stays up (lr_scheduler_type="constant_with_warmup", say): one
    that falls to 0 leaves them, and so the covariance, too close together.

    Where the Trainer keeps checkpoints, each iterate is also written into ``output_dir/swag``, before the checkpoint of
    its step: a run that is killed at any moment and resumed ends with the same moments.

    Args:
        network: what is trained; inside a `BayesianLoRA`, that network.
        start: steps after which collecting begins; the paper takes 3/4 of the run.
        every: steps from one iterate to the next, the first being at start + every; None takes the end of each epoch.
        num_deviations: K, the rank of the covariance beside its diagonal.
        all_trainable: draw every trained tensor, the task head for one; else those of the LoRA layers, and the
            others stay at the mean of their iterates.

    Raises:
        ConfigurationError: counts out of range, nothing to draw, or, on a resumed run, another `start` or `every`.
        CheckpointFileError: on a resumed run: iterates from before are missing or damaged.

    Source: Maddox et al. 2019, algorithm 1, training; section 5.1 for `start`.

    Example:
        >>> collector = SWAGCollector(network, start=300, every=10)  # doctest: +SKIP
        >>> Trainer(network, arguments, train_dataset=data, callbacks=[collector]).train()  # doctest: +SKIP
        >>> collector.swag().save("run/swag.safetensors")  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        start: int = 0,
        every: int | None = None,
        num_deviations: int = 20,
        all_trainable: bool = False,
    ) -> None:
        if start != 0:
            require_count("start", start)
        if every is not None:
            require_count("every", every)
        require_count("num_deviations", num_deviations)
        if num_deviations < 2:
            raise ConfigurationError("num_deviations=1 must be at least 2: the low-rank part is divided by K - 1.")
        self.network = network
        self.start, self.every = start, every
        self.num_deviations = num_deviations
        in_lora = {id(p) for layer in network.modules() if isinstance(layer, LoraLayer) for p in layer.parameters()}
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._drawn = [name for name, parameter in trained.items() if all_trainable or id(parameter) in in_lora]
        if not self._drawn:
            raise ConfigurationError(
                f"no LoRA layer of this {type(network).__name__} is trained, so there is nothing to draw. Pass "
                "all_trainable=True to draw whatever is trained."
            )
        self._forget()

    def collect(self) -> None:
        """Take the network's present tensors as the next iterate."""
        self._add(trainable_state(self.network))

    def swag(self) -> SWAG:
        """The Gaussian through what was collected.

        Raises:
            ConfigurationError: fewer than two iterates.
        """
        deviations = {name: torch.stack(list(columns)) for name, columns in self._deviations.items() if columns}
        mean = {name: value.clone() for name, value in self._mean.items()}
        variance = {name: value / self.num_iterates for name, value in self._squares.items()}
        return SWAG(mean, variance, deviations, self.num_iterates)

    def _forget(self) -> None:
        self.num_iterates = 0
        self._mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}  # sum of squared deviations from the mean
        self._deviations: dict[str, deque[Tensor]] = {name: deque(maxlen=self.num_deviations) for name in self._drawn}
        self._written: dict[int, str] = {}  # checksum of the iterate of each step

    def _add(self, state: State) -> None:
        self.num_iterates += 1
        for name, value in state.items():
            value = value.to(posterior_dtype(value.dtype))
            if self.num_iterates == 1:
                self._mean[name] = torch.zeros_like(value)
            mean = self._mean[name]
            before = value - mean
            mean += before / self.num_iterates
            if name in self._deviations:
                after = value - mean
                self._squares[name] = self._squares.get(name, 0) + before * after
                self._deviations[name].append(after)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._forget()
        folder = Path(str(args.output_dir)) / _FOLDER
        if state.global_step > self.start:
            self._read_back(folder, state.global_step)
        if _keeps_checkpoints(args):
            self._write_index(folder, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # Epochs are told by their last step: at on_epoch_end the checkpoint of that step is written already.
        ends = float(state.epoch or 0).is_integer() if self.every is None else self._is_due(state.global_step)
        if state.global_step <= self.start or not ends:
            return
        iterate = trainable_state(self.network)
        self._add(iterate)
        if _keeps_checkpoints(args) and state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / _FOLDER
            path = _iterate_file(folder, state.global_step)
            write_whole(path, save(iterate))
            self._written[state.global_step] = sha256_of(path)
            self._write_index(folder, state)

    def _is_due(self, step: int) -> bool:
        return self.every is not None and (step - self.start) % self.every == 0

    def _write_index(self, folder: Path, state: TrainerState) -> None:
        if state.is_world_process_zero:
            index = {"start": self.start, "every": self.every, "iterates": self._written}
            write_whole(folder / _INDEX_FILE, json.dumps(index, indent=2).encode())

    def _read_back(self, folder: Path, step: int) -> None:
        """Add the iterates that an earlier process collected up to `step`."""
        path = folder / _INDEX_FILE
        try:
            index = read_json(path)
            schedule = index["start"], index["every"]
            digests = {int(key): str(digest) for key, digest in index["iterates"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointFileError(
                f"the run goes on at step {step}, and the iterates since step {self.start} cannot be found: {path} is "
                f"missing or damaged ({error}). Train from the start with this collector, or pass start={step}."
            ) from error
        if schedule != (self.start, self.every):
            raise ConfigurationError(
                f"the run goes on at step {step}, and collected with start={schedule[0]}, every={schedule[1]} before; "
                f"now start={self.start}, every={self.every}. Pass the same, or train from the start."
            )
        self._written = {number: digest for number, digest in sorted(digests.items()) if number <= step}
        for number, digest in self._written.items():
            file = _iterate_file(folder, number)
            remedy = f"Resume from a checkpoint before step {number}, or train from the start."
            Format(CheckpointFileError, remedy).require_file(file, digest, _INDEX_FILE)
            self._add(load_file(file))


def _keeps_checkpoints(args: TrainingArguments) -> bool:
    return args.save_strategy != "no"


def _iterate_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step}.safetensors"
