"""The linearized predictive: a Gaussian over the logits of every example."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayes_lora.checks import require_choice, require_count, require_positive, require_seed
from bayes_lora.choices import Draws
from bayes_lora.inference.guides.draw_design import block_size, choose_design, source
from bayes_lora.inference.predictors.laplace.gradients import backpropagate
from bayes_lora.inference.predictors.laplace.laplace import LaplacePosterior
from bayes_lora.inference.predictors.laplace.linears import NamedLinear
from bayes_lora.inference.predictors.laplace.matching import match_linears
from bayes_lora.inference.predictors.laplace.option_logits import existing
from bayes_lora.inference.predictors.normal_streams import NormalStream
from bayes_lora.inference.predictors.predictor import Inputs, collect, evaluation_mode
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.precision import full_precision

LINKS = ("monte_carlo", "joint", "probit")


@dataclass(frozen=True)
class LaplacePredictor:
    """Predicts with f(x) ~ N(f(x; theta*), J S J'), S the posterior covariance and J = df(x) / dtheta at theta*.

    This is the predictive of the network linearized in its parameters, for which the GGN is the exact Hessian (Immer
    et al. 2021, arXiv 2008.08216, section 3). J S J' is summed Linear by Linear; C backward passes per batch.

    Attributes:
        network: the network that the posterior was fitted on; of multiple choice the `LikelihoodNetwork`.
        posterior: its posterior.
        link: "monte_carlo", logits of each row drawn from that Gaussian, exact as the number of draws grows; "joint",
            the same with parameters drawn, so that a sample is one network's logits of all rows, which checks of
            replicated labels need (S times the parameters are kept while it predicts); or "probit", one sample whose
            softmax is `probit_logits`' closed form.
        draws: a design, see `draw_design.source`; by default "tetrahedral" or "antithetic", as with `predict`.

    Example:
        >>> predictor = LaplacePredictor(network, posterior)  # doctest: +SKIP
        >>> predictor(loader, num_samples=32, seed=0).mean_probs  # doctest: +SKIP
    """

    network: nn.Module
    posterior: LaplacePosterior
    link: str = "monte_carlo"
    draws: Draws | None = None

    def __post_init__(self) -> None:
        require_choice("link", self.link, LINKS)
        choose_design(self.draws, 1)  # for its check

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        """Logits (sample, example, class) of every row; "probit" gives one sample, whatever `num_samples`.

        Draw s of the i-th row depends on the design and (seed, s, i) only, of "joint" on (seed, s): not on the batches,
        nor on how many draws there are.

        Raises:
            PosteriorFileError: the posterior does not fit the network.
            ConfigurationError: num_samples below 1, or a seed out of range.
            DataError: an empty loader, or labels in some batches only.
        """
        precision = [self.posterior.prior_precision]
        return self.at_precisions(loader, precision, num_samples=num_samples, seed=seed, on_batch=on_batch)[0]

    @full_precision
    def at_precisions(
        self,
        loader: Iterable[Mapping[str, Any]],
        precisions: Sequence[float],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> list[Prediction]:
        """One prediction for each prior precision, from one pass over the rows and the same normal variates.

        Without autocast, whatever is around: Jacobians are what rounding spoils first.

        Arguments and errors are those of a call; precisions must be positive.
        """
        require_count("num_samples", num_samples)
        require_seed("seed", seed)
        for precision in precisions:
            require_positive("prior precision", precision)
        linears = match_linears(self.network, self.posterior)
        design = choose_design(self.draws, num_samples)
        noise = [NormalStream.of(seed, source(design, draw)) for draw in range(num_samples)]
        drawn = [_parameters(self.posterior, noise, value) for value in precisions] if self.link == "joint" else []

        def samples(inputs: Inputs) -> Tensor:
            if self.link == "joint":
                return torch.cat(linearized_logits(self.network, linears, inputs, drawn))
            mean, covariances = output_gaussians(self.network, self.posterior, linears, inputs, precisions)
            if self.link == "probit":
                return torch.cat([probit_logits(mean, covariance).unsqueeze(0) for covariance in covariances])
            # One generator per draw, read row by row, for classes that a row has: so batches do not matter.
            exists = existing(self.network, mean)
            variates = mean.new_zeros(num_samples, *mean.shape)
            read = np.stack([generator.standard_normal([int(exists.sum())]) for generator in noise])
            variates[:, exists] = torch.from_numpy(read).to(mean)
            return torch.cat([_draws(mean, covariance, variates) for covariance in covariances])

        with evaluation_mode(self.network):
            all_samples = collect(samples, loader, linears[0].module.weight.device, on_batch)
        # A prior of precision lambda, and each row's likelihood once.
        temperature = None if self.link == "probit" else 1.0
        of_block = 1 if self.link == "probit" else block_size(design)
        return [
            Prediction(logits, all_samples.labels, temperature, self.link != "monte_carlo", of_block)
            for logits in all_samples.logits.chunk(len(precisions))
        ]


def output_gaussians(
    network: nn.Module,
    posterior: LaplacePosterior,
    linears: Sequence[NamedLinear],
    inputs: Inputs,
    precisions: Sequence[float],
) -> tuple[Tensor, list[Tensor]]:
    """Mean (example, class) of the logits, and for each prior precision their covariance (example, class, class).

    Args:
        network: in evaluation mode.
        posterior: whose blocks belong to `linears`, in order.
        linears: the Linears.
        inputs: a batch on the network's device, without labels.
        precisions: values of lambda.

    Returns:
        Both in double precision.
    """
    logits, gradients = backpropagate(network, linears, inputs, _unit_columns)
    num_examples, num_classes = logits.shape
    shape = (len(precisions), num_examples, num_classes, num_classes)
    total = torch.zeros(shape, dtype=torch.float64, device=logits.device)
    for block, of_linear in zip(posterior.blocks.values(), gradients, strict=True):
        jacobian = of_linear.of_weight()
        on_device = block.to(jacobian.device)
        total += torch.stack([on_device.output_covariance(jacobian, value) for value in precisions]).to(total.device)
    return logits.double(), list(total)


def linearized_logits(
    network: nn.Module, linears: Sequence[NamedLinear], inputs: Inputs, drawn: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """f(x; theta*) + J delta, in double precision, (sample, example, class), for each set of draws of delta.

    Args:
        network: in evaluation mode.
        linears: the Linears.
        inputs: a batch on the network's device, without labels.
        drawn: for each set, the draws (sample, out, in) of each Linear.
    """
    logits, gradients = backpropagate(network, linears, inputs, _unit_columns)
    totals = [logits.double().expand(len(deltas[0]), -1, -1).clone() for deltas in drawn]
    for index, of_linear in enumerate(gradients):
        jacobian = of_linear.of_weight()
        for total, deltas in zip(totals, drawn, strict=True):
            total += torch.einsum("ncoi,soi->snc", jacobian, deltas[index].to(jacobian)).to(total)
    return totals


def _parameters(posterior: LaplacePosterior, noise: Sequence[NormalStream], precision: float) -> list[Tensor]:
    """Draws (sample, out, in) of W - W* for each block; draw s is read from the s-th generator's stream.

    The generators are left where they were, so that every precision has the same noise.
    """
    streams = [copy.deepcopy(generator) for generator in noise]
    found = []
    for block in posterior.blocks.values():
        variates = np.stack([generator.standard_normal(block.shape) for generator in streams])
        found.append(block.draw(torch.from_numpy(variates), precision).float())
    return found


def probit_logits(mean: Tensor, covariance: Tensor) -> Tensor:
    """Logarithm of the class probabilities under a Gaussian over logits, in closed form.

        p_k = 1 / sum_j exp(-(m_k - m_j) / sqrt(1 + pi/8 v_kj)),    v_kj = V_kk + V_jj - 2 V_kj,

    normalized: the mean-field approximation of Lu, Ie and Sha 2020 (arXiv 2006.07584, "mf2"). For two classes it is
    the probit approximation of MacKay 1992, sigmoid(m / sqrt(1 + pi/8 v)), of the difference m of the logits. Like the
    softmax, it sees differences of logits only: what is common to all classes does not matter.

    Args:
        mean: m, (example, class); -inf where there is no such class.
        covariance: V, (example, class, class), 0 there.

    Returns:
        (example, class).
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    of_difference = (variance.unsqueeze(-1) + variance.unsqueeze(-2) - 2 * covariance).clamp_min(0)
    difference = mean.unsqueeze(-1) - mean.unsqueeze(-2)  # [k, j] = m_k - m_j
    difference = difference.where(~difference.isnan(), 0.0)  # of two classes that are not there
    scaled = difference / (1 + math.pi / 8 * of_difference).sqrt()
    return (-(-scaled).logsumexp(-1)).log_softmax(-1)


def _draws(mean: Tensor, covariance: Tensor, variates: Tensor) -> Tensor:
    """mean + covariance^{1/2} z for variates z (sample, example, class).

    The symmetric root: unlike Cholesky's it exists for singular covariances, and it moves little when rounding does.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
    return mean + torch.einsum("ncd,snd->snc", root, variates)


def _unit_columns(logits: Tensor) -> Tensor:
    """e_c, (class, example, class): propagated back, they give every logit's own gradient."""
    num_examples, num_classes = logits.shape
    return torch.eye(num_classes, dtype=logits.dtype, device=logits.device).unsqueeze(1).expand(-1, num_examples, -1)
