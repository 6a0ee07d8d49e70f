"""How the scale of the noise moves during training."""

import math
from typing import get_args

import torch
from torch import Tensor, nn

from bayes_lora.checks import require_choice, require_fraction, require_positive
from bayes_lora.choices import ScaleScheduleKind
from bayes_lora.models import BayesianLoRA

_START = 0.01  # part of the scale that is there from the first step: at 0 the KL of objective "elbo" is infinite
_SMOOTHING = 0.9  # weight of the past in the running mean of what drives a schedule, per observation
_LEAST_SHARE = 0.01


class SampleScaleSchedule(nn.Module):
    """epsilon of every adapter at every step: ``eps_l(t) = eps (.01 + .99 f(t)) w_l`` with eps the model's scale.

    The paper leaves epsilon a constant. Here f rises from 0 to 1, because noise that is harmless to a trained network
    can keep an untrained one from learning:

        constant  f = 1 throughout, without the .01
        linear    f = min(1, t / (warmup T))                          t steps of T are done
        cosine    f = (1 - cos(pi min(1, t / (warmup T)))) / 2
        entropy   f = 1 - H / ln C     H: running mean of the predictions' entropy on training batches, C classes
        loss      f = 1 - NLL / ln C   NLL: running mean; ln C is the loss of a guess. Below 0 counts as 0

    So the driven kinds turn the noise up as the network becomes sure (entropy) or right (loss), and down again when it
    no longer is. ``w_l = 1``, or with `per_adapter` the root mean square of mu_l relative to its mean over
    adapters, so that the noise is the same part of the weights everywhere.

    Where it stands is kept in buffers: they are in the Trainer's checkpoints, and alike on all processes.

    Args:
        kind: which of the above.
        warmup: part of the steps over which "linear" and "cosine" rise, in (0, 1].
        per_adapter: weigh the adapters by the size of their mean.

    Raises:
        ConfigurationError: an unknown kind, or `warmup` outside (0, 1].

    Example:
        >>> SVITrainer(model, guide, arguments, scale_schedule=SampleScaleSchedule("linear"))  # doctest: +SKIP
    """

    def __init__(self, kind: ScaleScheduleKind = "constant", *, warmup: float = 0.5, per_adapter: bool = False) -> None:
        super().__init__()
        require_choice("scale_schedule", kind, get_args(ScaleScheduleKind))
        require_positive("scale_warmup", warmup)
        require_fraction("scale_warmup", warmup)
        self.kind = kind
        self.warmup = warmup
        self.per_adapter = per_adapter
        self.uncertainty: Tensor  # H / ln C or NLL / ln C, summed with decaying weights
        self.weight: Tensor  # the sum of those weights
        self.register_buffer("uncertainty", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def observe(self, logits: Tensor, nll: Tensor) -> None:
        """Take note of the predictions (..., class) on a training batch and of their loss; all on the device."""
        if self.kind == "entropy":
            seen = torch.distributions.Categorical(logits=logits.float(), validate_args=False).entropy().mean()
        else:
            seen = nll.detach()
        seen = seen / math.log(logits.shape[-1])
        self.uncertainty.mul_(_SMOOTHING).add_(seen, alpha=1 - _SMOOTHING)
        self.weight.mul_(_SMOOTHING).add_(1 - _SMOOTHING)

    @torch.no_grad()
    def apply_to(self, model: BayesianLoRA, progress: float) -> None:
        """Set the model's `sample_scale` for the step that ends when `progress` of the training is done, in [0, 1]."""
        scale = model.config.sample_scale * self._fraction(progress).to(model.sample_scale)
        model.sample_scale.copy_(scale * _shares(model) if self.per_adapter else scale.expand_as(model.sample_scale))

    def _fraction(self, progress: float) -> Tensor:
        if self.kind == "constant":
            return torch.ones(())
        risen = min(1.0, progress / self.warmup)
        if self.kind == "linear":
            rise = torch.tensor(risen)
        elif self.kind == "cosine":
            rise = torch.tensor((1 - math.cos(math.pi * risen)) / 2)
        else:
            # Before anything was seen the network counts as knowing nothing.
            known = 1 - self.uncertainty / self.weight
            rise = torch.where(self.weight > 0, known, 0.0).clamp(0, 1)
        return _START + (1 - _START) * rise


def _shares(model: BayesianLoRA) -> Tensor:
    """w of every adapter, (adapter,), with mean 1."""
    sizes = [adapter.linear.weight.to(model.sample_scale).square().mean().sqrt() for adapter in model.sites.adapters]
    size = torch.stack(sizes)
    return (size / size.mean()).clamp_min(_LEAST_SHARE)
