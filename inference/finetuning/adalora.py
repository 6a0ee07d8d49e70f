"""What must accompany the training of PEFT's AdaLoRA: its budget of ranks, which shrinks as training goes on."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from bayes_lora.errors import CheckpointFileError, ConfigurationError
from bayes_lora.models import LikelihoodNetwork

_STATE = "lora_budget"  # PEFT saves what has its prefix and lies under the adapter's name
_ADAPTER = "default"
_FEWEST_STEPS = 3  # with fewer, the ranks would be fixed before any importance is known


def budget_phases(num_steps: int) -> tuple[int, int]:
    """For how many steps the budget is whole at first, and final at last: 15 % and half of all.

    About what the authors chose for the tasks of GLUE (arXiv 2303.10512, appendix).
    """
    return int(0.15 * num_steps), num_steps // 2


def initial_rank(target_rank: int) -> int:
    """The rank that every adapter starts with, 1.5 times the mean of the final ones (arXiv 2303.10512)."""
    return math.ceil(1.5 * target_rank)


def active_ranks(network: Any) -> dict[str, int]:
    """The rank that the budget has left to each adapted module; the others' singular values are zero for good.

    Raises:
        ConfigurationError: the budget was never allocated.
    """
    pattern = network.peft_config[_ADAPTER].rank_pattern
    if pattern is None:
        raise ConfigurationError(
            "the network's ranks were never allocated, so this is not AdaLoRA. Train it with the callbacks that "
            "make_network gives."
        )
    return {name.partition(".lora_E")[0]: sum(kept) for name, kept in pattern.items()}


def orthogonality(network: Any) -> Tensor:
    """What AdaLoRA adds to the loss, a scalar: gamma times the mean over LoRA-A and LoRA-B of |P P' - I|_F.

    P is (rank, in) or (out, rank)', and gamma the configuration's `orth_reg_weight`. PEFT adds it to losses that the
    network computes itself, and only to these.

    Source: arXiv 2303.10512, equation 4, as PEFT has it: the norm where the paper has its square.
    """
    distances = []
    for name, weight in network.base_model.model.named_parameters():
        if name.endswith(f".{_ADAPTER}") and ("lora_A" in name or "lora_B" in name):
            gram = weight @ weight.mT if "lora_A" in name else weight.mT @ weight
            distances.append((gram - torch.eye(len(gram)).to(gram)).norm())
    weight_of_all: float = network.peft_config[_ADAPTER].orth_reg_weight
    return weight_of_all * torch.stack(distances).mean()


class AdaLoRALikelihood(LikelihoodNetwork):
    """A `LikelihoodNetwork` of an AdaLoRA network, whose loss has `orthogonality` besides."""

    def forward(self, **batch: Any) -> Any:
        output = super().forward(**batch)
        if isinstance(output, dict):
            output["loss"] = output["loss"] + orthogonality(self.network)
        return output


class RankBudget(TrainerCallback):
    """Moves the budget of an AdaLoRA network after every optimizer step, and keeps it through checkpoints.

        b(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3        for t_i < t <= T - t_f,

    b_0 before and b_T after: the number of singular values over all adapters together that are not zero once step t,
    counted from 1, is done. The number of steps T is the Trainer's, so that the schedule cannot miss it; t_i and t_f
    are those of `budget_phases`.

    PEFT keeps the importance of each weight, by which the ranks are chosen, outside of the network, and once ranks are
    chosen it saves cut weights that training cannot go on with. Both would make a resumed run end elsewhere. So the
    importance goes into buffers of the network before a checkpoint, and PEFT's configuration learns of the ranks at
    the end.

    Args:
        network: a PEFT model with an `AdaLoraConfig`; its constant divisor of alpha is frozen.

    Raises:
        ConfigurationError: training has fewer than 3 steps.
        CheckpointFileError: training is resumed from a checkpoint without this state.

    Source: arXiv 2303.10512, section 3.3 and algorithm 1, as PEFT has them.
    """

    def __init__(self, network: Any) -> None:
        self._tuner = network.base_model
        self._config = network.peft_config[_ADAPTER]
        self._kept: dict[str, list[bool]] | None = None
        # Where PEFT 0.21 moves its weights to another precision or device, this constant becomes trainable with them,
        # and it is not saved.
        for name, parameter in self._tuner.model.named_parameters():
            if name.endswith(f".ranknum.{_ADAPTER}"):
                parameter.requires_grad_(False)

    def on_init_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Before a checkpoint is loaded into it.
        self._tuner.add_module(_STATE, nn.ModuleDict({_ADAPTER: _Importance(self._weights())}))
        self._config.rank_pattern = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.max_steps < _FEWEST_STEPS:
            raise ConfigurationError(
                f"AdaLoRA needs at least {_FEWEST_STEPS} steps to learn which singular values matter, and there are "
                f"{state.max_steps}: more epochs or a smaller batch_size give more. Or train it as lora."
            )
        config = self._config
        config.total_step = state.max_steps
        config.tinit, config.tfinal = budget_phases(state.max_steps)
        saved = self._saved()
        if int(saved.step) != state.global_step:
            raise CheckpointFileError(
                f"the checkpoint of step {state.global_step} does not hold the importance of AdaLoRA's weights at that "
                "step, without which the ranks would come out otherwise. Start training anew in another folder."
            )
        self._kept = saved.unpack(self._weights(), self._tuner.rankallocator)

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The Trainer counts the step only later. Counted from 1, the last step but t_f is the one that fixes the ranks,
        # also for t_f = 0.
        self._config.rank_pattern = self._kept
        self._tuner.update_and_allocate(state.global_step + 1)
        self._kept, self._config.rank_pattern = self._config.rank_pattern, None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save:
            self._saved().pack(self._weights(), self._tuner.rankallocator, self._kept, state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._config.rank_pattern = self._kept
        delattr(self._tuner, _STATE)

    def _weights(self) -> dict[str, Tensor]:
        """The weights whose importance counts, by the names that PEFT's allocator has for them."""
        named = self._tuner.model.named_parameters()
        return {name: weight for name, weight in named if "lora_" in name and name.endswith(f".{_ADAPTER}")}

    def _saved(self) -> "_Importance":
        return self._tuner.get_submodule(f"{_STATE}.{_ADAPTER}")  # type: ignore[no-any-return]


class _Importance(nn.Module):
    """The state of PEFT's rank allocator, end to end in buffers, so that it is saved and loaded with the network."""

    sensitivity: Tensor  # (weight,) moving average of |w dL/dw|
    uncertainty: Tensor  # (weight,) moving average of its distance from that average
    kept: Tensor  # (singular value,) whether the budget has left it
    step: Tensor  # () after which this was so

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        whole = torch.cat([weight.detach().flatten() for weight in weights.values()])
        for name in ("sensitivity", "uncertainty"):
            self.register_buffer(name, torch.zeros_like(whole))
        num_values = sum(weight.numel() for name, weight in weights.items() if "lora_E" in name)
        self.register_buffer("kept", torch.ones(num_values, dtype=torch.bool, device=whole.device))
        self.register_buffer("step", torch.zeros((), dtype=torch.long, device=whole.device))

    def pack(self, weights: dict[str, Tensor], allocator: Any, kept: dict[str, list[bool]] | None, step: int) -> None:
        # It forgets the importance once the ranks are fixed.
        if allocator.ipt:
            self.sensitivity.copy_(torch.cat([allocator.exp_avg_ipt[name].flatten() for name in weights]))
            self.uncertainty.copy_(torch.cat([allocator.exp_avg_unc[name].flatten() for name in weights]))
        if kept is not None:
            values = [torch.tensor(kept[name]) for name in weights if "lora_E" in name]
            self.kept.copy_(torch.cat(values))
        self.step.fill_(step)

    def unpack(self, weights: dict[str, Tensor], allocator: Any) -> dict[str, list[bool]] | None:
        """Give the allocator its state; returns which singular values are kept."""
        sizes = [weight.numel() for weight in weights.values()]
        split = zip(weights.items(), self.sensitivity.split(sizes), self.uncertainty.split(sizes), strict=True)
        allocator.reset_ipt()
        for (name, weight), sensitivity, uncertainty in split:
            allocator.ipt[name] = torch.zeros_like(weight)  # of one step: replaced before it is read
            allocator.exp_avg_ipt[name] = sensitivity.view_as(weight).clone()
            allocator.exp_avg_unc[name] = uncertainty.view_as(weight).clone()
        if self.kept.all():
            return None
        values = {name: weight.numel() for name, weight in weights.items() if "lora_E" in name}
        return {name: kept.tolist() for name, kept in zip(values, self.kept.split(list(values.values())), strict=True)}
