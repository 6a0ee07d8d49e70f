"""ScalaBL: a posterior over r numbers for each adapter, one for each row of LoRA-A."""

import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bayes_lora.adapters.finding import find_adapters
from bayes_lora.checks import require_count, require_non_negative, require_positive
from bayes_lora.choices import Draws
from bayes_lora.errors import LikelihoodError, PosteriorFileError, UnsupportedAdapterError
from bayes_lora.inference.guides.draw_design import choose_design
from bayes_lora.inference.predictors.drawn_weights import DrawnWeights
from bayes_lora.inference.predictors.ensemble import require_fit, trainable_state
from bayes_lora.models import LikelihoodNetwork, MultipleChoice, TrainedModule
from bayes_lora.sealed_files import Format, write_sealed_tensors

_FORMAT = Format(PosteriorFileError, "Save it again.")
_PART = "trained"


class ScalaBL(TrainedModule):
    """LoRA with a posterior over the scales of LoRA-A's rows, trained by its evidence lower bound:

        A = diag(s) V',   s ~ N(m, diag sigma^2),   prior s ~ N(0, p^2 I)
        loss = the network's own + T / n_train * sum_adapters KL(N(m, diag sigma^2) || N(0, p^2 I))

    V' and m start as the right singular vectors and the singular values of the LoRA-A that is there, and are trained;
    V' stays no orthogonal matrix. One draw serves all rows of a batch. Out of training mode it is the network at s = m.

    It changes the network in place: LoRA-A holds V' from then on, and what it gives is multiplied by s.

    Args:
        network: a PEFT classifier with LoRA layers, which returns its own loss where it is given labels; or a
            `LikelihoodNetwork` of `MultipleChoice`.
        num_train_examples: n_train.
        init_scale: e; sigma starts uniform between e / sqrt 2 and e, from torch's global generator.
        prior_scale: p.
        kl_temperature: T. The published code has its own optimizer for the KL in place of a weight, SGD at a rate that
            rises within each epoch, as BLoB has.

    Attributes:
        scales, log_deviations: m and ln sigma of each adapter, (rank,).

    Raises:
        AdapterError, UnsupportedAdapterError: see `find_adapters`; DoRA, experts or convolutions.
        ConfigurationError: a value outside its domain.
        LikelihoodError: a likelihood of other labels than options.

    Source: Samplawski et al. 2025, Scalable Bayesian Low-Rank Adaptation of Large Language Models via Stochastic
    Variational Subspace Inference (arXiv 2506.21408), as its published code has it, but that m is kept itself, not its
    logarithm, and that the KL is that of the posterior from the prior.
    """

    def __init__(
        self,
        network: Any,
        num_train_examples: int,
        *,
        init_scale: float = 0.05,
        prior_scale: float = 1.0,
        kl_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        require_count("num_train_examples", num_train_examples)
        require_positive("init_scale", init_scale)
        require_positive("prior_scale", prior_scale)
        require_non_negative("kl_temperature", kl_temperature)
        if isinstance(network, LikelihoodNetwork) and not isinstance(network.likelihood, MultipleChoice):
            raise LikelihoodError(
                f"ScalaBL is of classes, or of a row's own options, and {type(network.likelihood).__name__} is of "
                "neither. Fit a posterior with BayesianLoRA."
            )
        self.network = network
        self._weight, self._prior_scale = kl_temperature / num_train_examples, prior_scale
        self._noises: list[Tensor | None] = []
        self.scales, self.log_deviations = nn.ParameterList(), nn.ParameterList()
        adapters = find_adapters(network)
        for adapter in adapters:
            if adapter.layer.lora_variant.get(adapter.key) is not None or not isinstance(adapter.linear, nn.Linear):
                raise UnsupportedAdapterError(
                    f"{adapter.name}: ScalaBL is of plain LoRA on Linears, and this is another kind. Leave the layer "
                    "out of target_modules."
                )
        for index, adapter in enumerate(adapters):
            weight = adapter.linear.weight
            _, singular, right = torch.linalg.svd(weight.detach(), full_matrices=False)
            with torch.no_grad():
                weight.copy_(right)
            start = torch.empty(adapter.rank).uniform_(init_scale / 2**0.5, init_scale)
            self.scales.append(nn.Parameter(singular.clone()))
            self.log_deviations.append(nn.Parameter(start.log().to(singular)))
            self._noises.append(None)
            adapter.linear.register_forward_hook(partial(self._scale, index))

    @property
    def inner_network(self) -> Any:
        """The PEFT model."""
        return self.network.network if isinstance(self.network, LikelihoodNetwork) else self.network

    @property
    def batch_columns(self) -> list[str]:
        """With those that a likelihood reads."""
        return self.network.batch_columns if isinstance(self.network, LikelihoodNetwork) else super().batch_columns

    def forward(self, **batch: Any) -> Any:
        """What the network returns; in training mode at a draw, and with the KL in its loss."""
        self._noises = [
            deviation.exp() * torch.randn_like(deviation) if self.training else None
            for deviation in self.log_deviations
        ]
        output = self.network(**batch)
        if self.training and batch.get("labels") is not None:
            output["loss"] = output["loss"] + self._weight * self.kl()
        return output

    def kl(self) -> Tensor:
        """sum_adapters KL(N(m, diag sigma^2) || N(0, p^2 I)), nats."""
        mean, log_deviation = torch.cat([*self.scales]), torch.cat([*self.log_deviations])
        ratio = ((2 * log_deviation).exp() + mean.square()) / self._prior_scale**2
        return (ratio - 1).sum() / 2 - (log_deviation - math.log(self._prior_scale)).sum()

    def _scale(self, index: int, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """s V' x of one adapter."""
        scale, noise = self.scales[index], self._noises[index]
        drawn: Tensor = scale if noise is None else scale + noise
        return output * drawn.to(output)

    def save(self, path: str | Path) -> None:
        """Write all that is trained as one safetensors file, whole or not at all, with a checksum."""
        write_sealed_tensors(Path(path), {_PART: trainable_state(self)})

    def load(self, path: str | Path) -> Self:
        """Take what `save` wrote for a module built in the same way.

        Raises:
            PosteriorFileError: missing, damaged, or no such file.
            ConfigurationError: it does not fit this one; names the tensor.
        """
        state = _FORMAT.read_sealed_tensors(Path(path), (_PART,), "ScalaBL.save")[_PART]
        require_fit(self, state, str(path))
        self.load_state_dict(state, strict=False)
        return self


@dataclass(frozen=True, eq=False)
class _ScaleNoise:
    """The posterior of the scales, by the names of their tensors."""

    mean: dict[str, Tensor]
    deviations: dict[str, Tensor] = field(repr=False)

    def noise(self, seed: int) -> dict[str, Tensor]:
        """sigma * z, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: value * torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in self.deviations.items()
        }


@dataclass(frozen=True, eq=False)
class ScalaBLPredictor(DrawnWeights):
    """The predictive of a trained `ScalaBL`: see `DrawnWeights`. At deviation 0 every draw is its mean, bit by bit.

    Args:
        network: the module.
        deviation: what sigma is multiplied by.
        draws: a design, see `draw_design.source`; by default "tetrahedral" or "antithetic", as with `predict`.

    Raises:
        ConfigurationError: a deviation below 0, or no such draws.

    Example:
        >>> module = ScalaBL(network, len(rows))  # doctest: +SKIP
        >>> fit_network(module, rows)  # doctest: +SKIP
        >>> ScalaBLPredictor(module)(loader, num_samples=16).mean_probs  # doctest: +SKIP
    """

    network: ScalaBL
    deviation: float = 1.0
    draws: Draws | None = None

    def __post_init__(self) -> None:
        require_non_negative("deviation", self.deviation)
        choose_design(self.draws, 1)  # for its check

    @cached_property
    def weights(self) -> _ScaleNoise:
        """The posterior as it was when first asked for."""
        own = self.network
        mean = {f"scales.{index}": value.detach().to("cpu", copy=True) for index, value in enumerate(own.scales)}
        logs = zip(mean, own.log_deviations, strict=True)
        return _ScaleNoise(mean, {name: value.detach().exp().cpu() for name, value in logs})
