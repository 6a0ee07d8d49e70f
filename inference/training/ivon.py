"""IVON in place of AdamW: a training whose optimizer learns a Gaussian over everything that it trains."""

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from bayes_lora.checks import require_fraction, require_non_negative, require_positive
from bayes_lora.errors import ConfigurationError
from bayes_lora.extras import require_extra
from bayes_lora.inference.predictors.ivon import IVONPosterior
from bayes_lora.inference.training.trainable import require_trainable
from bayes_lora.models import LikelihoodNetwork


@dataclass(frozen=True)
class IVONOptions:
    """Those of IVON, with the values published for LoRA.

    Attributes:
        learning_rate: its peak. A step is at most ``learning_rate * clip_radius`` of any parameter, here 3e-5; beside
            the 5e-5 of AdamW there it is that which compares with Adam's learning rate.
        ess: effective number of training rows, lambda. With the real number of rows it is Bayes' rule; published are
            1e6 to 1e8 for thousands of rows, a posterior much narrower than that.
        hess_init: h of every parameter at the start. A standard deviation is 1 / sqrt(ess (h + weight_decay)).
        beta1, beta2: how much of the mean gradient, and of h, a step keeps.
        clip_radius: of a step before the learning rate, in each parameter.
        weight_decay: precision of the prior by ess.

    Raises:
        ConfigurationError: a value outside its domain.

    Source: Cong et al. 2024, Variational Low-Rank Adaptation Using IVON (arXiv 2411.04421), and its code for
    WinoGrande-S and BoolQ.
    """

    learning_rate: float = 0.03
    ess: float = 1e7
    hess_init: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.99999
    clip_radius: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "ess", "hess_init", "clip_radius"):
            require_positive(name, getattr(self, name))
        for name in ("beta1", "beta2"):
            require_fraction(name, getattr(self, name))
        require_non_negative("weight_decay", self.weight_decay)


class IVONTraining(TrainerCallback):
    """The optimizer IVON over what a network trains, and what has to go with it: every step's gradient is at a draw.

    q(theta) = prod_i N(theta_i; m_i, 1 / (ess (h_i + delta))) minimizes E_q[mean loss] + KL(q || prior) / ess; m is the
    network itself, h is learned from ``noise * gradient / variance`` (Price's theorem), one draw a step.

        training = IVONTraining(network)
        fit_network(network, rows, options, optimizer=training.optimizer, callbacks=[training])
        IVONPredictor(network, training.posterior())

    Under any Trainer: ``SealedTrainer(network, optimizers=(training.optimizer, None), callbacks=[training], ...)``. The
    learning rate's schedule is the Trainer's; checkpoints hold the posterior and a resumed run goes on from it to the
    same end. Where a step has several batches all are at one draw.

    Cost: a training step of AdamW; as many numbers of state. Clipping of gradients by their norm, the Trainer's
    default, would also clip what h is learned from: give FitOptions a large `max_grad_norm`, since IVON has a radius of
    its own.

    Args:
        network: what requires a gradient is trained, and gets a posterior.
        options: see `IVONOptions`.

    Attributes:
        optimizer: for the Trainer.

    Raises:
        MissingExtraError: ivon-opt is not installed; it is licensed under the GPL, version 3 or later.
        ConfigurationError: nothing to train, parameters of several types or devices, or a likelihood that has
            some of its own; when training starts, several processes.

    Source: Shen et al. 2024 (arXiv 2402.17641), algorithm 1; the optimizer is its authors' package, ivon-opt.
    """

    def __init__(self, network: nn.Module, options: IVONOptions | None = None) -> None:
        require_extra("ivon", "IVON", "ivon")
        from ivon import IVON

        require_trainable(network)
        if isinstance(network, LikelihoodNetwork) and list(network.likelihood.parameters()):
            raise ConfigurationError(
                f"IVON would take the parameters of the {type(network.likelihood).__name__} for weights of the "
                "network. Train a network with its own loss, or fit a posterior with BayesianLoRA."
            )
        self._named = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
        kinds = {(value.dtype, value.device) for _, value in self._named}
        if len(kinds) > 1:
            raise ConfigurationError(
                f"IVON needs all trained parameters of one type and on one device, and they are of {len(kinds)}: "
                f"{', '.join(sorted(map(str, kinds)))}. Cast or move them before."
            )
        settings = asdict(options or IVONOptions())
        rate = settings.pop("learning_rate")
        self.optimizer: torch.optim.Optimizer = IVON(
            [value for _, value in self._named], lr=rate, rescale_lr=False, **settings
        )
        # Its state leaves out which step this is, by which it corrects the mean gradient.
        self.optimizer.register_state_dict_post_hook(_with_step)
        self.optimizer.register_load_state_dict_pre_hook(_take_step)
        self._drawn: AbstractContextManager[None] | None = None
        self._homes: list[Tensor] = []

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            raise ConfigurationError("IVON trains in one process here, and there are several. Start it in one.")
        self._homes = [value.data for _, value in self._named]

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Put a draw into the network."""
        self._drawn = self._ivon.sampled_params(train=True)
        self._drawn.__enter__()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand over the gradient at the draw, and put the mean back."""
        assert self._drawn is not None
        for _, value in self._named:
            if value.grad is None:  # the loss does not look at it
                value.grad = torch.zeros_like(value)
        self._drawn.__exit__(None, None, None)
        self._drawn = None

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the parameters where they were: IVON leaves them as parts of one tensor, which no file would take."""
        for (_, value), home in zip(self._named, self._homes, strict=True):
            value.data = home.copy_(value.data)

    @property
    def _ivon(self) -> Any:
        return self.optimizer

    def posterior(self) -> IVONPosterior:
        """What has been learned so far, on the CPU."""
        (group,) = self.optimizer.param_groups
        scales = (group["ess"] * (group["hess"] + group["weight_decay"])).rsqrt().cpu()
        parts = scales.split([value.numel() for _, value in self._named])
        return IVONPosterior(
            {name: value.detach().to("cpu", copy=True) for name, value in self._named},
            {name: part.reshape(value.shape).clone() for (name, value), part in zip(self._named, parts, strict=True)},
        )


def _with_step(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "current_step": optimizer.current_step}


def _take_step(optimizer: Any, state: dict[str, Any]) -> None:
    optimizer.current_step = state["current_step"]
