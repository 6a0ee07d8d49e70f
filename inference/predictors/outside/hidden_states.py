"""What a classification head reads of every row, beside what the network predicts of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference.predictors.laplace.linears import find_head
from bayes_lora.inference.predictors.predictor import Inputs, NetworkPredictor, collect, evaluation_mode
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import LikelihoodNetwork, MultipleChoice
from bayes_lora.models.likelihoods.option_passes import OPTIONS, behind_questions


def hidden_states(
    predictor: NetworkPredictor,
    loader: Iterable[Mapping[str, Any]],
    *,
    head: str | None = None,
    on_batch: Callable[[], None] | None = None,
) -> tuple[Prediction, Tensor]:
    """A prediction, and the inputs (row, width) of the Linear that gives its logits, in double precision on the CPU.

    Where the head reads every token and the network picks one, as decoders do, it is the input of that token: the first
    whose output is the row's logits. Of multiple choice it is that of a question's last token, from which all options
    go on.

    Args:
        predictor: of classes, by one pass of its network for each batch: a `PointEstimate`, an `Ensemble` of one.
        loader: batches as the network takes them.
        head: name of the head, where it is not the last Linear registered.
        on_batch: called after each batch, for progress bars.

    Raises:
        ConfigurationError: more passes than one, or a head whose outputs are not the logits.
        DataError: see `collect_logits`.
    """
    network = predictor.network
    options = asks_for_options(network)
    if isinstance(network, LikelihoodNetwork) and not options:
        raise ConfigurationError(
            f"the hidden states of a {type(network.likelihood).__name__} have no classes to be near to. Pass a network "
            "with its own loss of classes."
        )
    linear = find_head(network, head)
    found: list[Tensor] = []
    with evaluation_mode(network), predictor.drawing(1, 0) as passes, _calls(linear.module) as calls:

        def logits_of(inputs: Inputs) -> Tensor:
            calls.clear()
            logits = torch.cat([*passes(inputs)])
            if len(calls) != 1 or len(logits) != 1:
                raise ConfigurationError(
                    f"{type(predictor).__name__} runs {linear.name} {len(calls)} times for a batch, and hidden states "
                    "are of one network. Pass PointEstimate(network)."
                )
            if options:
                found.append(behind_questions(calls[0][0], inputs[OPTIONS]).double().cpu())
            else:
                found.append(_of_rows(*calls[0], logits[0], linear.name))
            return logits

        prediction = collect(logits_of, loader, next(network.parameters()).device, on_batch)
    return prediction, torch.cat(found)


def asks_for_options(network: nn.Module) -> bool:
    """Whether a network's classes are a row's own options."""
    return isinstance(network, LikelihoodNetwork) and isinstance(network.likelihood, MultipleChoice)


def require_classes(network: nn.Module) -> None:
    """Raise where a network's classes are a row's own options, which are no classes of other rows.

    Raises:
        ConfigurationError: they are.
    """
    if asks_for_options(network):
        raise ConfigurationError(
            "the network chooses among a row's own options, which are no classes that rows could share. Tell rows "
            "from elsewhere by NearestNeighbours or EnergyScore, or fit a posterior with BayesianLoRA."
        )


def labelled_states(
    predictor: NetworkPredictor, loader: Iterable[Mapping[str, Any]], head: str | None
) -> tuple[Tensor, Tensor]:
    """Hidden states (row, width) of training rows, and their labels (row,).

    Raises:
        DataError: the rows have no labels; see `hidden_states`.
    """
    prediction, states = hidden_states(predictor, loader, head=head)
    if prediction.labels is None:
        raise DataError("the training rows have no labels, and so no classes. Pass batches with 'labels'.")
    return states, known_labels(prediction.labels)


@contextmanager
def _calls(linear: nn.Linear) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Input and output of each call inside."""
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((inputs[0], output))

    handle = linear.register_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def _of_rows(inputs: Tensor, outputs: Tensor, logits: Tensor, name: str) -> Tensor:
    """(row, width): of each row the input of which the output is its logits."""
    rows = len(logits)
    if inputs.shape[0] == rows and outputs.shape[-1] == logits.shape[-1]:
        of_tokens = outputs.reshape(rows, -1, outputs.shape[-1])
        same = (of_tokens == logits.unsqueeze(1)).all(-1)  # (row, token)
        if same.any(-1).all():
            states = inputs.reshape(rows, -1, inputs.shape[-1])
            return states[torch.arange(rows, device=states.device), same.int().argmax(-1)].double().cpu()
    raise ConfigurationError(
        f"the outputs of {name} are not the network's logits, so that it is not its head. Give the name of the Linear "
        "that is: head=..., one of network.named_modules()."
    )
