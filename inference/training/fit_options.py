"""The options of a fit."""

from dataclasses import dataclass
from typing import Literal, get_args

from bayes_lora.checks import (
    require_choice,
    require_count,
    require_fraction,
    require_non_negative,
    require_positive,
    require_seed,
)
from bayes_lora.choices import Precision, ScaleScheduleKind, Seeding, WeightDecayOf
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.training.scale_schedule import SampleScaleSchedule
from bayes_lora.randomness import Part

Phases = Literal["joint", "posterior", "means_then_posterior"]
Decay = Literal["linear", "constant"]


@dataclass(frozen=True)
class FitOptions:
    """How `fit` trains.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples a step.
        learning_rate: of LoRA-A's mean, LoRA-B and the task head, at its peak.
        posterior_learning_rate: of log alpha and log v, at its peak. Adam moves a logarithm by about its learning rate
            a step, so T steps of a linear decay move it by at most T / 2 times this: 0.01 and 300 steps are a factor
            of e^1.5 = 4.5. Where v should go further, give it a higher rate, more steps or a better `sample_scale`.
        likelihood_learning_rate: of the likelihood's own parameters, such as the logarithm of the noise, at its peak.
        weight_decay: on the network's matrices; never on biases, alpha and v. It is AdamW's, and no part of the
            objective: with it, what is minimized under objective "elbo" is no longer the bound.
        weight_decay_of: which matrices it is on: "all"; "b_and_head", all but LoRA-A, which has the prior of objective
            "elbo" already; or "adapters", all but the task head. Under Adam the decay bounds a weight by the ratio of
            its gradient's mean and root mean square, over the decay: little for a class that few batches have.
        warmup_ratio: part of the steps over which the learning rates rise.
        decay: what they do then: "linear", fall to zero, or "constant", stay, as SWAG wants it.
        max_grad_norm: gradients are clipped to this norm over all parameters together.
        precision: "float32", or "bfloat16": the network's forward passes run under autocast to it; parameters, their
            gradients and the posterior stay as they are. On processors with bfloat16 units about twice as fast.
        group_by_length: put examples of similar length into one batch, so that less of it is padding. The order
            stays random among groups of batches, and examples need `input_ids` (or a column `length`).
        seed: of the order of examples, dropout and the posterior draws.
        seeding: "separate", the order of examples has a stream of its own, see `bayes_lora.randomness.Part`; "shared"
            repeats what version 0.1 did, where epoch e of seed s has the order of epoch e - 1 of seed s + 1.
        log_every: steps between entries of the history.
        save_every: steps between checkpoints, where they are kept.
        keep_checkpoints: how many of the newest are kept; None keeps all, as a checkpoint ensemble wants it.
        phases: "joint" learns all at once; "posterior" learns alpha and v alone, everything in the network frozen
            (post hoc); "means_then_posterior" spends the first half of the steps on the network without noise, as
            plain LoRA, and the second on alpha and v alone, each half with a learning-rate schedule of its own.
        scale_schedule: how the sample scale moves while the posterior learns; see `SampleScaleSchedule`.
        scale_warmup: part of the steps over which "linear" and "cosine" raise it.
        scale_per_adapter: weigh the scale by the size of each adapter's mean.
        micro_batch_size: examples in one pass of the network, where those of a step are too many for the memory: a step
            is then over several passes, each with a draw of its own, and of the same examples. `batch_size` is a
            multiple of it; None is all in one pass.
        head_learning_rate: of the task head alone, at its peak; None is `learning_rate`. A head over many classes needs
            a higher one: Adam moves a weight by about its learning rate a step, however far it has to go.

    Raises:
        ConfigurationError: a value outside its domain.

    Source: arXiv 2411.04358, Algorithm 1 (joint); its post hoc and two-phase variants.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 3e-4
    posterior_learning_rate: float = 1e-2
    likelihood_learning_rate: float = 5e-2
    weight_decay: float = 0.0
    weight_decay_of: WeightDecayOf = "all"
    warmup_ratio: float = 0.06
    decay: Decay = "linear"
    max_grad_norm: float = 1.0
    precision: Precision = "float32"
    group_by_length: bool = False
    seed: int = 0
    seeding: Seeding = "separate"
    log_every: int = 10
    save_every: int = 100
    keep_checkpoints: int | None = 2
    phases: Phases = "joint"
    scale_schedule: ScaleScheduleKind = "constant"
    scale_warmup: float = 0.5
    scale_per_adapter: bool = False
    micro_batch_size: int | None = None
    head_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_every", "save_every"):
            require_count(name, getattr(self, name))
        if self.micro_batch_size is not None:
            require_count("micro_batch_size", self.micro_batch_size)
            if self.batch_size % self.micro_batch_size:
                raise ConfigurationError(
                    f"batch_size={self.batch_size} is no multiple of micro_batch_size={self.micro_batch_size}, so that "
                    "a step would not be whole passes. Give one that divides it."
                )
        if self.keep_checkpoints is not None:
            require_count("keep_checkpoints", self.keep_checkpoints)
        for name in ("learning_rate", "posterior_learning_rate", "likelihood_learning_rate", "max_grad_norm"):
            require_positive(name, getattr(self, name))
        if self.head_learning_rate is not None:
            require_positive("head_learning_rate", self.head_learning_rate)
        require_fraction("warmup_ratio", self.warmup_ratio)
        require_seed("seed", self.seed)
        require_non_negative("weight_decay", self.weight_decay)
        require_choice("phases", self.phases, get_args(Phases))
        require_choice("decay", self.decay, get_args(Decay))
        require_choice("weight_decay_of", self.weight_decay_of, get_args(WeightDecayOf))
        require_choice("seeding", self.seeding, get_args(Seeding))
        require_choice("precision", self.precision, get_args(Precision))
        self.new_schedule()

    def seed_of(self, part: Part) -> int:
        """Where a part of the fit starts from."""
        return part.seed(self.seed, self.seeding)

    def new_schedule(self) -> SampleScaleSchedule | None:
        """The schedule of the sample scale at its start, or None where the scale is not to be touched."""
        schedule = SampleScaleSchedule(
            self.scale_schedule, warmup=self.scale_warmup, per_adapter=self.scale_per_adapter
        )
        return None if self.scale_schedule == "constant" and not self.scale_per_adapter else schedule
