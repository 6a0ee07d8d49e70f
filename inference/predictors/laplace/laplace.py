"""The Laplace approximation at a trained point estimate."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bayes_lora.checks import require_choice, require_class_ids, require_count, require_positive
from bayes_lora.errors import ConfigurationError, DataError, LikelihoodError, NonFiniteLossError
from bayes_lora.inference.predictors.laplace.blocks import Block
from bayes_lora.inference.predictors.laplace.curvature import (
    Curvature,
    DiagonalCurvature,
    KroneckerCurvature,
    hessian_columns,
)
from bayes_lora.inference.predictors.laplace.gradients import backpropagate
from bayes_lora.inference.predictors.laplace.linears import NamedLinear, select_linears
from bayes_lora.inference.predictors.laplace.option_logits import existing, peft_model
from bayes_lora.inference.predictors.predictor import evaluation_mode
from bayes_lora.models import LikelihoodNetwork
from bayes_lora.precision import full_precision


@dataclass(frozen=True)
class LaplaceOptions:
    """Over which parameters, and with which structure, the posterior is.

    Attributes:
        parameters: "all" (every active LoRA-A and LoRA-B), "all_and_head" (and the last Linear of the classification
            head), or "last_layer" (that Linear alone). A Linear's bias, where there is one, belongs to it.
        structure: "kfac_reduce" (the default: a classifier has one loss term per row, not one per token, and then it
            is the form that keeps the products between tokens, nearer to the GGN on small transformers, and the
            cheaper one), "kfac_expand", or "diagonal"; see `curvature`.
        max_rank: of K-FAC: most eigenvectors to keep of each Kronecker factor; None keeps all. Where a factor is
            wider, such as the (in, in) factor of a LoRA-A or the (out, out) factor of a LoRA-B, it is built by
            incremental singular value decomposition and the matrix itself never exists.
        head: name of the Linear to take for the last layer, where it is not the last one registered.
    """

    parameters: str = "all"
    structure: str = "kfac_reduce"
    max_rank: int | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        require_choice("parameters", self.parameters, ("all", "all_and_head", "last_layer"))
        require_choice("structure", self.structure, ("kfac_reduce", "kfac_expand", "diagonal"))
        if self.max_rank is not None:
            require_count("max_rank", self.max_rank)
            if self.structure == "diagonal":
                raise ConfigurationError(
                    f"max_rank={self.max_rank!r} belongs to the Kronecker factors, and structure='diagonal' has none. "
                    "Leave it out, or use structure='kfac_reduce'."
                )
        if self.head is not None and self.parameters == "all":
            raise ConfigurationError(
                f"head={self.head!r} is said, but parameters='all' leaves the head out. Use "
                "parameters='all_and_head' or 'last_layer'."
            )


@dataclass(frozen=True)
class LaplacePosterior:
    """N(theta*, (H + lambda I)^{-1}), with H block-diagonal over Linears, and what its evidence needs.

    Attributes:
        options: what it was fitted with.
        blocks: the curvature of each Linear, by name.
        squared_norms: sum of theta*^2 of each Linear.
        log_likelihood: ln p(D | theta*), summed over the training rows, nats.
        num_rows: n, training rows.
        prior_precision: lambda of the prior N(0, I / lambda).
    """

    options: LaplaceOptions
    blocks: Mapping[str, Block]
    squared_norms: Mapping[str, float]
    log_likelihood: float
    num_rows: int
    prior_precision: float = 1.0

    def __post_init__(self) -> None:
        require_positive("prior_precision", self.prior_precision)

    @property
    def num_parameters(self) -> int:
        return sum(block.shape[0] * block.shape[1] for block in self.blocks.values())

    def with_prior_precision(self, prior_precision: float) -> "LaplacePosterior":
        """The same curvature under another prior."""
        return replace(self, prior_precision=prior_precision)

    def log_marginal_likelihood(self, prior_precision: Tensor | None = None) -> Tensor:
        """ln p(D) ~ ln p(D | theta*) + ln p(theta*) - 1/2 ln|(H + lambda I) / (2 pi)|, a scalar in double precision.

        With P parameters this is

            ln p(D | theta*) + (P ln lambda - lambda |theta*|^2 - ln|H + lambda I|) / 2,

        since the P ln 2 pi of prior and determinant cancel (MacKay 1992; Daxberger et al. 2021, arXiv 2106.14806).

        Args:
            prior_precision: lambda, a scalar tensor through which gradients pass; the posterior's own if None.
        """
        if prior_precision is None:
            prior_precision = torch.tensor(self.prior_precision, dtype=torch.float64)
        precision = prior_precision.to("cpu", torch.float64)
        determinants = sum(block.log_determinant(precision).cpu() for block in self.blocks.values())
        penalty = precision * sum(self.squared_norms.values())
        return self.log_likelihood + (self.num_parameters * precision.log() - penalty - determinants) / 2


@full_precision
def fit_laplace(
    network: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    options: LaplaceOptions | None = None,
    *,
    on_batch: Callable[[], None] | None = None,
) -> LaplacePosterior:
    """The Laplace approximation of a trained classifier, or of multiple choice, in one pass over its training rows.

    The precision is the generalized Gauss-Newton matrix of the SUMMED cross-entropy of the n rows that `loader` gives
    (not of their mean), plus lambda I; lambda starts at 1, see `tune_prior_precision`. `parameters="all"` is
    Laplace-LoRA, and "last_layer" the last-layer form, LLLA, of Yang et al. 2024 (arXiv 2308.13111), whose LLLA treats
    the output layer only. Unlike theirs, which puts LoRA on the output layer of a language model, ours is about the
    head's own weight and bias, which PEFT trains beside the adapters of a classifier.

    Args:
        network: a trained classifier with a task head, for example a PEFT model; or a `LikelihoodNetwork` of
            `MultipleChoice`, whose classes are each row's own options. It is run at its mean, in evaluation mode, and
            left as it was: weights, their gradients and the training mode.
        loader: batches of the training rows with `labels`, once each.
        options: which parameters and which structure.
        on_batch: called after each batch, for progress bars.

    Raises:
        AdapterError: no LoRA Linear, adapters merged or disabled, or one in which examples cannot be told apart.
        ConfigurationError: no last layer, or one whose outputs are not the classes.
        DataError: no batches, or a batch without labels.
        LikelihoodError: logits that are not (example, class), labels outside the classes, or another likelihood.
        NonFiniteLossError: NaN or infinity in the logits or their gradients.

    Example:
        >>> posterior = tune_prior_precision(fit_laplace(network, train_loader))  # doctest: +SKIP
        >>> prediction = LaplacePredictor(network, posterior)(test_loader, num_samples=32)  # doctest: +SKIP
    """
    options = options or LaplaceOptions()
    linears = select_linears(peft_model(network, options.parameters), options.parameters, options.head)
    curvatures = [_new_curvature(linear, options) for linear in linears]
    log_likelihood, num_rows = 0.0, 0
    device = linears[0].module.weight.device
    with evaluation_mode(network):
        for batch in loader:
            inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            labels = inputs.pop("labels", None)
            if labels is None:
                raise DataError(
                    f"a training batch has no labels, only {sorted(inputs)}. Add a 'labels' column: the evidence "
                    "needs them."
                )
            logits, gradients = backpropagate(network, linears, inputs, hessian_columns)
            _check_outputs(logits, labels, linears[-1] if options.parameters != "all" else None)
            if isinstance(network, LikelihoodNetwork):
                network.likelihood.checked_labels(logits, labels)
            _check_finite("the logits", logits[existing(network, logits)])
            for linear, curvature, of_linear in zip(linears, curvatures, gradients, strict=True):
                _check_finite(f"the gradients at {linear.name}", of_linear.inputs, of_linear.outputs)
                curvature.add(of_linear)
            log_likelihood -= float(cross_entropy(logits.double(), labels.reshape(-1).long(), reduction="sum"))
            num_rows += len(logits)
            if on_batch is not None:
                on_batch()
    if num_rows == 0:
        raise DataError("there is nothing to fit: the loader has no batches. Pass the training rows.")
    return LaplacePosterior(
        options,
        {linear.name: curvature.block() for linear, curvature in zip(linears, curvatures, strict=True)},
        {linear.name: linear.squared_norm() for linear in linears},
        log_likelihood,
        num_rows,
    )


def _new_curvature(linear: NamedLinear, options: LaplaceOptions) -> Curvature:
    device = linear.module.weight.device
    if options.structure == "diagonal":
        return DiagonalCurvature(linear.shape, device)
    reduce = options.structure == "kfac_reduce"
    return KroneckerCurvature(linear.shape, device, reduce=reduce, max_rank=options.max_rank)


def _check_outputs(logits: Tensor, labels: Tensor, head: NamedLinear | None) -> None:
    if logits.dim() != 2 or labels.numel() != len(logits):
        raise LikelihoodError(
            f"the network returned logits of shape {tuple(logits.shape)} for {labels.numel()} labels; classification "
            "has (example, class) and one label per example. Load it with AutoModelForSequenceClassification."
        )
    num_classes = logits.shape[-1]
    if num_classes < 2:
        raise LikelihoodError(
            "the network has one output, a regression head; the categorical likelihood needs two classes or more. "
            "Load it with num_labels=2 (or the number of classes of your task)."
        )
    remedy = "Load the network with num_labels={needed}, or correct the labels."
    require_class_ids(labels, num_classes, LikelihoodError, remedy)
    if head is not None and head.shape[0] != num_classes:
        raise ConfigurationError(
            f"the last Linear, {head.name}, has {head.shape[0]} outputs where the network has {num_classes} classes, "
            "so it does not give the logits. Name the one that does: LaplaceOptions(head=...)."
        )


def _check_finite(what: str, *values: Tensor) -> None:
    """Before anything is decomposed, which would fail with an error of its own."""
    if not all(value.isfinite().all() for value in values):
        raise NonFiniteLossError(
            f"{what}: NaN or infinite in a training batch. Look for NaN in the inputs and weights, or load the network "
            "in float32."
        )
