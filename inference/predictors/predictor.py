"""What every method of prediction is, and the loop over batches that they share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from bayes_lora.errors import DataError
from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.drawn_prediction import DrawnPrediction
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import Likelihood, LikelihoodNetwork
from bayes_lora.models.likelihood_network import prediction_of

Inputs = dict[str, Any]  # a batch on the network's device, without its labels
Passes = Callable[[Inputs], Iterator[Tensor]]
"""Logits (sample, example, class) of a batch, of one pass of the network after the other."""


class Predictor(Protocol):
    """A method of prediction: seeded logits (sample, example, class) of the rows of a loader.

    Any callable of this form is one; ``functools.partial(predict, model, guide)`` is the posterior predictive. The
    same seed gives the same draws, whatever the batches; a method without draws returns one sample.
    """

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction: ...


class NetworkPredictor(ABC):
    """A `Predictor` by passes of one network: a subclass says in `drawing` what the logits of a batch are.

    Attributes:
        network: returns logits (example, class) for a batch, or is a `LikelihoodNetwork`, and predictions are those of
            its likelihood; in evaluation mode while it predicts.
        joint: whether a sample is one network's logits of all rows, see `Prediction`.
    """

    network: nn.Module
    joint: ClassVar[bool] = True

    def block_size(self, num_samples: int) -> int:
        """Samples that belong together by design, see `Prediction`."""
        return 1

    @abstractmethod
    def drawing(self, num_samples: int, seed: int) -> AbstractContextManager[Passes]:
        """Around all batches of a prediction; gives what makes the logits of a batch."""

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        network, device = self.network, next(self.network.parameters()).device
        with evaluation_mode(network), self.drawing(num_samples, seed) as passes:
            if isinstance(network, LikelihoodNetwork) and network.likelihood.reduces:
                predict = partial(_reduced, network, passes)
                return joined_batches(predict, network.likelihood, loader, device, on_batch)  # type: ignore[no-any-return]
            outputs = collect_logits(lambda inputs: torch.cat([*passes(inputs)]), loader, device, on_batch)
        found = prediction_of(network, *outputs)
        if not isinstance(found, Prediction | DrawnPrediction):
            return found  # type: ignore[no-any-return]
        of_draws: Any = replace(found, joint=self.joint, block_size=self.block_size(num_samples))
        return of_draws  # type: ignore[no-any-return]


def collect(
    logits_of: Callable[[Inputs], Tensor],
    loader: Iterable[Mapping[str, Any]],
    device: torch.device,
    on_batch: Callable[[], None] | None = None,
) -> Prediction:
    """One `Prediction` from all batches; arguments and errors are those of `collect_logits`."""
    return Prediction.of(*collect_logits(logits_of, loader, device, on_batch))


def collect_logits(
    logits_of: Callable[[Inputs], Tensor],
    loader: Iterable[Mapping[str, Any]],
    device: torch.device,
    on_batch: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Logits (sample, example, output) of all batches, computed without gradients, and labels where they have some.

    A batch with fewer samples than others has them again and again, so that a mean over samples stays what it is; the
    most have to be a multiple of its number. Where rows have options of their own, -inf fills those up that have fewer.

    Args:
        logits_of: gives (sample, example, output) for a batch on `device`, of which the labels have been taken.
        loader: batches as the network takes them; `labels` are kept where present.
        device: of the network.
        on_batch: called after each batch, for progress bars.

    Raises:
        DataError: an empty loader, or labels in some batches only.
    """
    logits, labels = [], []
    with torch.no_grad():
        for inputs, found in labelled_inputs(loader, device):
            if found is not None:
                labels.append(found.cpu())
            logits.append(in_full_precision(logits_of(inputs)))
            if on_batch is not None:
                on_batch()
    most = max(map(len, logits))
    whole = [of.repeat(most // len(of), *[1] * (of.dim() - 1)) if len(of) < most else of for of in logits]
    longest = max(of.shape[2] for of in whole)
    if whole[0].dim() == 3:
        whole = [_lengthened(of, 2, longest, -math.inf) for of in whole]
    # (sample, row, token, class): rows of tokens are as long as the longest of their batch.
    if whole[0].dim() == 4 and any(of.shape[2] < longest for of in whole):
        whole = [_lengthened(of, 2, longest, 0) for of in whole]
        labels = [_lengthened(of, 1, longest, UNLABELLED) for of in labels]
    return torch.cat(whole, dim=1), torch.cat(labels) if labels else None


def _reduced(network: LikelihoodNetwork, passes: Passes, inputs: Inputs, labels: Tensor | None) -> Any:
    """What a likelihood that reduces its passes predicts of one batch."""
    reduction = network.likelihood.reduction(network.network, inputs, labels)
    for logits in passes(dict(reduction.inputs)):
        reduction.add(logits)
    return reduction.prediction()


def joined_batches(
    predict: Callable[[Inputs, Tensor | None], Any],
    likelihood: Likelihood,
    loader: Iterable[Mapping[str, Any]],
    device: torch.device,
    on_batch: Callable[[], None] | None = None,
) -> Any:
    """One prediction of what is predicted of each batch, without gradients, where a likelihood reduces its passes.

    Args:
        predict: of a batch on `device` and its labels.
        likelihood: whose predictions these are.
        loader, device, on_batch: see `collect_logits`.

    Raises:
        DataError: an empty loader, or labels in some batches only.
    """
    parts = []
    with torch.no_grad():
        for inputs, labels in labelled_inputs(loader, device):
            parts.append(predict(inputs, labels))
            if on_batch is not None:
                on_batch()
    return likelihood.joined(parts)


def labelled_inputs(
    loader: Iterable[Mapping[str, Any]], device: torch.device
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Each batch on `device`, and the labels that were taken from it.

    Raises:
        DataError: after the last batch: there was none, or labels in some only.
    """
    num_batches = num_labelled = 0
    for batch in loader:
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        labels = inputs.pop("labels", None)
        num_batches, num_labelled = num_batches + 1, num_labelled + (labels is not None)
        yield inputs, labels
    if num_batches == 0:
        raise DataError("there is nothing to predict: the loader has no batches. Pass at least one row.")
    if num_labelled not in (0, num_batches):
        raise DataError("some batches have labels and some do not. Label all rows, or none.")


def _lengthened(part: Tensor, dim: int, length: int, value: float) -> Tensor:
    """With `value` where a dimension had no entry."""
    missing = list(part.shape)
    missing[dim] = length - part.shape[dim]
    return torch.cat([part, part.new_full(missing, value)], dim=dim) if missing[dim] else part


def in_full_precision(logits: Tensor) -> Tensor:
    """In float32 or better, on the CPU."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside; afterwards each has the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
