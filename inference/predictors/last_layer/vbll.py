"""VBLL: a variational posterior over the last layer, by a bound in closed form."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from bayes_lora.checks import require_class_ids, require_count, require_positive, require_seed
from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, DataError, NotConvergedError, PosteriorFileError
from bayes_lora.inference.guides.draw_design import block_size, choose_design, source
from bayes_lora.inference.predictors.laplace.linears import find_head
from bayes_lora.inference.predictors.normal_streams import NormalStream
from bayes_lora.inference.predictors.outside.hidden_states import (
    hidden_states,
    labelled_states,
    require_classes,
)
from bayes_lora.inference.predictors.predictor import NetworkPredictor
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.sealed_files import Format, write_sealed_tensors

_FORMAT = Format(PosteriorFileError, "Save it again.")
_PARTS = ("mean", "variance", "noise")


@dataclass(frozen=True)
class VBLLOptions:
    """Of a VBLL.

    Attributes:
        prior_scale: p^2, variance of the prior of a weight.
        wishart_scale, degrees_of_freedom: of the prior of the logits' noise, see `VBLLPosterior`.
        max_steps: of L-BFGS.

    Raises:
        ConfigurationError: a value outside its domain.

    Source: the published code's defaults.
    """

    prior_scale: float = 1.0
    wishart_scale: float = 1.0
    degrees_of_freedom: float = 1.0
    max_steps: int = 1000

    def __post_init__(self) -> None:
        for name in ("prior_scale", "wishart_scale", "degrees_of_freedom"):
            require_positive(name, getattr(self, name))
        require_count("max_steps", self.max_steps)


@dataclass(frozen=True, eq=False)
class VBLLPosterior:
    """A posterior over the last layer of a classifier, and noise of its logits:

        z_c = w_c' h + e_c,   q(w_c) = N(mean_c, diag variance_c),   e_c ~ N(0, noise_c),   y ~ Categorical(softmax z)

    h are the inputs of the head (`hidden_states`) and a 1 for its bias. It maximizes, per row, the bound

        E_q ln p(y | h) >= m_y - ln sum_c exp(m_c + v_c / 2),   m_c = mean_c' h,   v_c = h' diag variance_c h + noise_c

    (Jensen's inequality; ``E exp z_c`` is exact) less 1/n of ``sum_c KL(q(w_c) || N(0, p^2 I))``, plus 1/n of the
    prior of the noise, ``-1/2 (nu + C + 1) sum_c ln noise_c - 1/2 scale sum_c 1 / noise_c``.

    Attributes:
        mean: (class, width + 1), double precision.
        variance: the same shape.
        noise: variances (class,).

    Source: Harrison, Willes and Snoek 2024, Variational Bayesian Last Layers (arXiv 2404.11599), the discriminative
    classifier, with the diagonal covariance of its published code.
    """

    mean: Tensor
    variance: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.variance.shape or self.noise.shape != self.mean.shape[:1]:
            raise ConfigurationError(
                f"mean {tuple(self.mean.shape)}, variance {tuple(self.variance.shape)} and noise "
                f"{tuple(self.noise.shape)} of a VBLL do not belong together. Take them from fit_vbll."
            )

    def logits(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (row, class) of z, for hidden states (row, width)."""
        inputs = _with_one(states)
        return inputs @ self.mean.mT, inputs.square() @ self.variance.mT + self.noise

    def bound(self, states: Tensor, labels: Tensor) -> Tensor:
        """The bound on E_q ln p(y | h) of each row, (row,), nats, without what q and the noise cost."""
        mean, variance = self.logits(states)
        return mean.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - (mean + variance / 2).logsumexp(-1)

    def kl(self, prior_scale: float) -> Tensor:
        """sum_c KL(q(w_c) || N(0, p^2 I)), nats."""
        ratio = self.variance / prior_scale
        return (ratio + self.mean.square() / prior_scale - 1 - ratio.log()).sum() / 2

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file, whole or not at all, with a checksum of its tensors."""
        write_sealed_tensors(Path(path), {part: {"head": getattr(self, part)} for part in _PARTS})

    @classmethod
    def load(cls, path: str | Path) -> "VBLLPosterior":
        """Read what `save` wrote.

        Raises:
            PosteriorFileError: missing, damaged, or no file of a VBLL.
        """
        found = _FORMAT.read_sealed_tensors(Path(path), _PARTS, "VBLLPosterior.save")
        return cls(*(found[part]["head"] for part in _PARTS))


def fit_vbll(
    predictor: NetworkPredictor,
    loader: Iterable[Mapping[str, Any]],
    options: VBLLOptions | None = None,
    *,
    head: str | None = None,
) -> VBLLPosterior:
    """The VBLL of a trained network whose hidden states stay: the paper's training after the features are trained.

    The whole objective is a function of the hidden states, so it is maximized on all rows at once, by L-BFGS from the
    network's own head, in double precision and without random numbers.

    Args:
        predictor: of classes, by one pass of its network, see `hidden_states`.
        loader: labelled batches of the rows that the network was trained on.
        options: see `VBLLOptions`.
        head: see `hidden_states`.

    Raises:
        ConfigurationError: multiple choice; see `hidden_states`.
        DataError: rows without labels, or labels outside the classes.
        NotConvergedError: `max_steps` were not enough.

    Source: arXiv 2404.11599.

    Example:
        >>> posterior = fit_vbll(PointEstimate(network), training_loader)  # doctest: +SKIP
    """
    options = options or VBLLOptions()
    require_classes(predictor.network)
    linear = find_head(predictor.network, head).module
    states, labels = labelled_states(predictor, loader, head)
    require_class_ids(labels, linear.out_features, DataError, "Correct the labels.")
    mean = _with_bias(linear)
    start = VBLLPosterior(
        mean, torch.full_like(mean, 1 / mean.shape[1]), torch.full_like(mean[:, 0], np.exp(-2.0))
    )  # as the published code starts, less its random numbers

    def loss(flat: Any) -> tuple[float, Any]:
        at = torch.from_numpy(flat).requires_grad_()
        value = -objective(_unpacked(at, start), states, labels, options)
        value.backward()
        return float(value.detach()), at.grad.numpy()  # type: ignore[union-attr]

    packed = torch.cat([start.mean.flatten(), start.variance.log().flatten(), start.noise.log()])
    limits = {"maxiter": options.max_steps, "maxfun": 2 * options.max_steps, "ftol": 1e-10, "gtol": 1e-7}
    found = minimize(loss, packed.numpy(), jac=True, method="L-BFGS-B", options=limits)
    if found.nit >= options.max_steps or not np.isfinite(found.fun):
        raise NotConvergedError(
            f"the bound of VBLL was still rising after {options.max_steps} steps ({found.message}). Give a larger "
            "VBLLOptions(max_steps=...)."
        )
    return _unpacked(torch.from_numpy(found.x), start)


def objective(posterior: VBLLPosterior, states: Tensor, labels: Tensor, options: VBLLOptions) -> Tensor:
    """What `fit_vbll` maximizes, per row, nats: see `VBLLPosterior`."""
    precision = 1 / posterior.noise
    degrees = (options.degrees_of_freedom + len(precision) + 1) / 2
    prior_of_noise = degrees * precision.log().sum() - options.wishart_scale * precision.sum() / 2
    cost = posterior.kl(options.prior_scale) - prior_of_noise
    return posterior.bound(states, labels).mean() - cost / len(labels)


@dataclass(frozen=True, eq=False)
class VBLLPredictor:
    """``p(y | x) = 1/S sum_s softmax(W_s h + e_s)`` with weights and noise of the logits drawn from a `VBLLPosterior`.

    The weights of draw s depend on the design and (seed, s) only, the noise of the i-th row on (seed, s, i): not on the
    batches.

    Cost: one forward pass, and S products of the head.

    Args:
        predictor: of the network that the posterior was fitted to.
        posterior: of its head.
        draws: a design, see `draw_design.source`; by default "tetrahedral" or "antithetic", as with `predict`.
        head: see `hidden_states`.

    Raises:
        ConfigurationError: no such draws; when called: num_samples below 1, a seed out of range, or hidden states of
            another width than the posterior's.

    Source: arXiv 2404.11599 and its published code, which draws 10 times.

    Example:
        >>> VBLLPredictor(PointEstimate(network), posterior)(loader, num_samples=16).mean_probs  # doctest: +SKIP
    """

    predictor: NetworkPredictor
    posterior: VBLLPosterior
    draws: Draws | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        choose_design(self.draws, 1)  # for its check

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        require_count("num_samples", num_samples)
        require_seed("seed", seed)
        design, posterior = choose_design(self.draws, num_samples), self.posterior
        prediction, states = hidden_states(self.predictor, loader, head=self.head, on_batch=on_batch)
        if states.shape[1] + 1 != posterior.mean.shape[1]:
            raise ConfigurationError(
                f"the VBLL is of hidden states of width {posterior.mean.shape[1] - 1}, and the network's have "
                f"{states.shape[1]}. Give the network that it was fitted to."
            )
        inputs, logits = _with_one(states), []
        for draw in range(num_samples):
            noise = NormalStream.of(seed, source(design, draw))
            drawn = torch.from_numpy(noise.standard_normal(posterior.mean.shape))
            weights = posterior.mean + posterior.variance.sqrt() * drawn
            of_rows = torch.from_numpy(noise.standard_normal((len(inputs), len(weights))))
            logits.append(inputs @ weights.mT + posterior.noise.sqrt() * of_rows)
        return Prediction(torch.stack(logits), prediction.labels, block_size=block_size(design))


def _with_one(states: Tensor) -> Tensor:
    return nn.functional.pad(states, (0, 1), value=1.0)


def _with_bias(linear: nn.Linear) -> Tensor:
    """Weight, and bias as the last column, in double precision on the CPU."""
    weight = linear.weight.detach().double().cpu()
    bias = torch.zeros(len(weight), dtype=torch.float64) if linear.bias is None else linear.bias.detach().double().cpu()
    return torch.cat([weight, bias.unsqueeze(1)], dim=1)


def _unpacked(flat: Tensor, like: VBLLPosterior) -> VBLLPosterior:
    """From mean, log variance and log noise, one after the other."""
    size = like.mean.numel()
    mean, variance, noise = flat.split([size, size, like.noise.numel()])
    return VBLLPosterior(mean.reshape(like.mean.shape), variance.exp().reshape(like.mean.shape), noise.exp())
